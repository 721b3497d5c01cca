// Package notify is an example of being told without looking: a handler for
// Caddy's events that runs a command, say one that posts to a webhook, when a
// person has to log in.
//
// Caddy has events and no handler of its own for them. This one needs nothing but
// Caddy; build it in as in the folder caddy.
package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
)

func init() { caddy.RegisterModule(Notify{}) }

// Notify runs a command for each event of device_flow that it is subscribed to.
// There is no shell in between. The command finds
//
//   - on its standard input a JSON object: the event's name as `event`, a sentence
//     for people as `text`, and all data of the event;
//   - in its environment the same as DEVICE_FLOW_EVENT, DEVICE_FLOW_TEXT,
//     DEVICE_FLOW_SESSION, DEVICE_FLOW_USER_CODE and so on, beside what Caddy's
//     own environment has.
//
// None of it is a secret. Events of one session wait for each other; a login or a
// refresh waits for none of them.
type Notify struct {
	// The program and its arguments.
	Command []string `json:"command"`

	// How long it may take before it is killed. Default: 30s.
	Timeout caddy.Duration `json:"timeout,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (Notify) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "events.handlers.notify", New: func() caddy.Module { return new(Notify) }}
}

// UnmarshalCaddyfile reads `on <event> notify <command> [<argument…>]`.
func (n *Notify) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the name of the handler
	if n.Command = d.RemainingArgs(); len(n.Command) == 0 {
		return d.ArgErr()
	}
	return nil
}

// Provision looks for the command now, for at the first event it would be night.
func (n *Notify) Provision(caddy.Context) error {
	if n.Timeout == 0 {
		n.Timeout = caddy.Duration(30 * time.Second)
	}
	if len(n.Command) == 0 {
		return fmt.Errorf("notify: name the command to run")
	}
	if _, err := exec.LookPath(n.Command[0]); err != nil {
		return fmt.Errorf("notify: the command cannot be run: %w", err)
	}
	return nil
}

// Handle implements caddyevents.Handler. Caddy logs the error that it returns.
func (n *Notify) Handle(ctx context.Context, e caddy.Event) error {
	if e.Origin() == nil || e.Origin().CaddyModule().ID != "device_flow" {
		return nil // other modules may have an event of that name
	}
	data := map[string]string{}
	for key, v := range e.Data {
		data[key] = fmt.Sprint(v)
	}
	data["event"] = e.Name()
	data["text"] = sentence(data)
	body, err := json.Marshal(data)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(n.Timeout))
	defer cancel()
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, n.Command[0], n.Command[1:]...)
	cmd.WaitDelay = time.Second // for what a killed shell leaves running with our pipes
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(body), &said, &said
	cmd.Env = os.Environ()
	for _, key := range slices.Sorted(maps.Keys(data)) {
		cmd.Env = append(cmd.Env, "DEVICE_FLOW_"+strings.ToUpper(key)+"="+data[key])
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("notify: %s: %w: %.300q", n.Command[0], err, said.String())
	}
	return nil
}

// sentence says in words what has happened and, if there is one, the next step.
func sentence(data map[string]string) string {
	session := data["session"]
	switch data["event"] {
	case "login_pending":
		s := fmt.Sprintf("%s: somebody has to log in. Open %s and enter %s", session, data["verification_uri"], data["user_code"])
		if until, err := time.Parse(time.RFC3339, data["code_expires_at"]); err == nil {
			s += until.UTC().Format(" by 15:04 UTC")
		}
		return s + "."
	case "login_succeeded":
		if data["account"] == "" {
			return session + ": logged in, calls are served."
		}
		return fmt.Sprintf("%s: logged in as %s, calls are served.", session, data["account"])
	case "login_failed":
		return fmt.Sprintf("%s: the login failed: %s. Open the proxy's status page to try again.", session, data["reason"])
	case "refresh_failed":
		return fmt.Sprintf("%s: the token could not be refreshed: %s.", session, data["reason"])
	case "token_refreshed":
		return session + ": the token has been refreshed."
	case "logged_out":
		return session + ": logged out."
	default:
		return session + ": " + data["event"]
	}
}

var (
	_ caddyevents.Handler   = (*Notify)(nil)
	_ caddy.Provisioner     = (*Notify)(nil)
	_ caddyfile.Unmarshaler = (*Notify)(nil)
)
