package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

// operator talks to the admin API of a running Caddy on behalf of a person.
type operator struct {
	address string // of the admin API, as Caddy writes it
	out     *terminal
}

// maxAnswer bounds an answer of the admin API in bytes. It is for thousands of sessions.
const maxAnswer = 16 << 20

// newOperator finds the admin API by the flags of a command.
func newOperator(cmd *cobra.Command) (*operator, error) {
	fl := caddycmd.Flags{FlagSet: cmd.Flags()}
	address, file, adapter := fl.String("address"), fl.String("config"), fl.String("adapter")
	var config []byte
	if address == "" && file != "" {
		var err error
		if config, _, _, err = caddycmd.LoadConfig(file, adapter); err != nil {
			return nil, fmt.Errorf("reading %s: %w", file, err)
		}
		var c struct {
			Admin *caddy.AdminConfig `json:"admin"`
		}
		if json.Unmarshal(config, &c) == nil && c.Admin != nil && c.Admin.Disabled {
			return nil, fmt.Errorf("%s switches the admin API off ('admin off'), which these commands need: remove that, or use the status page", file)
		}
	}
	address, err := caddycmd.DetermineAdminAPIAddress(address, config, file, adapter)
	if err != nil {
		return nil, fmt.Errorf("finding the admin API: %w", err)
	}
	return &operator{address: address, out: newTerminal(cmd.OutOrStdout())}, nil
}

// refused is an answer of the admin API that is an error.
type refused struct {
	status int
	text   string
}

func (e *refused) Error() string { return e.text }

// errSilent is wrapped by what says that there is no answer: Caddy may be starting.
var errSilent = errors.New("no answer")

// said is what the admin API said.
type said struct {
	body    []byte
	warning string // of the answer's header
	err     error
}

// ask sends one request.
func (o *operator) ask(ctx context.Context, method, path string) said {
	answered := make(chan said, 1)
	// Caddy's function takes no context; what it leaves behind ends with the command.
	go func() { answered <- o.request(method, path) }()
	select {
	case a := <-answered:
		return a
	case <-ctx.Done():
		return said{err: ctx.Err()}
	}
}

func (o *operator) request(method, path string) (a said) {
	// The connection is not kept: Caddy's function makes a client for each.
	res, err := caddycmd.AdminAPIRequest(o.address, method, path, http.Header{"Connection": {"close"}}, nil)
	if err != nil {
		a.err = o.explain(err)
		return a
	}
	defer res.Body.Close()
	a.warning = clean(res.Header.Get("Warning"), maxReason)
	if a.body, err = io.ReadAll(io.LimitReader(res.Body, maxAnswer)); err != nil {
		a.err = fmt.Errorf("%w from Caddy's admin API at %s: reading: %w", errSilent, o.address, err)
	}
	return a
}

// caddyError is how the admin API words its errors.
type caddyError struct {
	Error string `json:"error"`
}

// explain says what to do about an error of caddycmd.AdminAPIRequest, which has
// all it knows in its text.
func (o *operator) explain(err error) error {
	text, answered := strings.CutPrefix(err.Error(), "caddy responded with error: HTTP ")
	if !answered {
		return fmt.Errorf("%w from Caddy's admin API at %s: is Caddy running, and its admin API not switched off? If it is elsewhere, give --address or --config (%s)",
			errSilent, o.address, clean(err.Error(), maxReason))
	}
	code, text, _ := strings.Cut(text, ": ")
	e := &refused{}
	e.status, _ = strconv.Atoi(code)
	var problem caddyError
	_ = json.Unmarshal([]byte(text), &problem) // if it is none, there is its text
	e.text = clean(problem.Error, maxReason)
	switch {
	case e.text != "":
	case e.status == http.StatusNotFound:
		e.text = fmt.Sprintf("the Caddy at %s knows nothing of device_flow: is it another build, or another server?", o.address)
	default:
		e.text = fmt.Sprintf("the admin API at %s answers HTTP %s: %s", o.address, code, clean(text, maxReason))
	}
	if e.status == http.StatusForbidden {
		e.text += " (see 'origins' of the admin option)"
	}
	return e
}

// listed is a session as the admin API shows it.
type listed struct {
	status flow.Status
	raw    json.RawMessage
}

// list is all sessions.
func (o *operator) list(ctx context.Context) ([]listed, error) {
	a := o.ask(ctx, http.MethodGet, adminPath)
	if a.err != nil {
		return nil, a.err
	}
	var raws []json.RawMessage
	err := json.Unmarshal(a.body, &raws)
	all := make([]listed, len(raws))
	for i, raw := range raws {
		all[i].raw = raw
		err = errors.Join(err, json.Unmarshal(raw, &all[i].status))
	}
	if err != nil {
		return nil, fmt.Errorf("what answers at %s is not the admin API of a Caddy with device_flow: %w", o.address, err)
	}
	return all, nil
}

// errNoSession is wrapped by what says that a session is not there.
var errNoSession = errors.New("there is no session")

// choose is the session that a name means. Of two with one name, as there are
// during a reload, it is the newer one.
func choose(all []listed, name string) (listed, error) {
	const most = 20 // names in an error
	found, fallback := -1, -1
	var names []string
	for i, s := range all {
		if len(names) == 0 || names[len(names)-1] != word(s.status.Session) {
			names = append(names, word(s.status.Session))
		}
		switch s.status.Session {
		case name:
			found = i
		case flow.DefaultName:
			fallback = i
		}
	}
	if len(names) == 1 && fallback < 0 {
		fallback = len(all) - 1
	}
	if n := len(names) - most; n > 0 {
		names = append(names[:most:most], fmt.Sprintf("and %d more", n))
	}
	switch {
	case name != "" && found >= 0:
		return all[found], nil
	case name == "" && fallback >= 0:
		return all[fallback], nil
	case len(all) == 0:
		return listed{}, fmt.Errorf("%w: Caddy runs, but nothing in its configuration uses device_flow, or only with session_key and nobody has called yet", errNoSession)
	case name == "":
		return listed{}, fmt.Errorf("there are several sessions, so name one: %s", strings.Join(names, ", "))
	}
	return listed{}, fmt.Errorf("%w %s; there are: %s", errNoSession, word(name), strings.Join(names, ", "))
}

// get is the session that a name means.
func (o *operator) get(ctx context.Context, name string) (listed, error) {
	all, err := o.list(ctx)
	if err != nil {
		return listed{}, err
	}
	return o.choose(ctx, all, name)
}

// choose is the session that a name means, be it in memory or not: that of a key
// that nobody has used for a while is in no list, and comes back by its name.
func (o *operator) choose(ctx context.Context, all []listed, name string) (listed, error) {
	s, err := choose(all, name)
	if err == nil || !strings.Contains(name, keyMark) {
		return s, err
	}
	a := o.ask(ctx, http.MethodGet, adminPath+"/"+url.PathEscape(name))
	if no := (*refused)(nil); errors.As(a.err, &no) && no.status == http.StatusNotFound {
		return s, err
	}
	if a.err != nil {
		return s, a.err
	}
	s.raw = a.body
	return s, json.Unmarshal(a.body, &s.status)
}

// post has something done with a session. A warning is about what was done in part.
func (o *operator) post(ctx context.Context, name, action string) (st flow.Status, warning string, err error) {
	a := o.ask(ctx, http.MethodPost, adminPath+"/"+url.PathEscape(name)+"/"+action)
	if a.err != nil {
		return st, "", a.err
	}
	if err := json.Unmarshal(a.body, &st); err != nil {
		return st, "", fmt.Errorf("the admin API at %s sent no status: %w", o.address, err)
	}
	return st, a.warning, nil
}

// pace is how often a command that waits looks again. Caddy logs each request to
// its admin API, and the line with the code shall not be lost among them.
const pace = 3 * time.Second
