package caddymodule

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
)

// Guard says who may call the proxy and look at the status page. A proxy that adds
// a credential to whatever comes by is a confused deputy, so all of it is on by
// default, for GET as well, and is checked before anything else is done.
type Guard struct {
	// Addresses and CIDR ranges that may call, in place of loopback, link-local and
	// private ranges (RFC 1918, RFC 4193), which `private_ranges` stands for. Unix
	// sockets always may. The address is Caddy's client_ip: that of the connection,
	// unless it is one of the server's trusted_proxies, and then every address that
	// those report has to be allowed.
	AllowClient []string `json:"allow_client,omitempty"`

	// Names that Host may have besides those of the site's own matchers, a missing
	// Host, IP addresses (not 0.0.0.0 nor [::]), localhost, *.localhost and names
	// without a dot. A label may be `*`. Anything else could be a name that a web
	// page has pointed at this machine (DNS rebinding).
	AllowHost []string `json:"allow_host,omitempty"`

	// Web origins that may call besides the proxy's own, as in
	// https://app.example.com. Their pages may read what the API answers, and nothing
	// of the status page.
	AllowOrigin []string `json:"allow_origin,omitempty"`
}

// keeper is a Guard at work.
type keeper struct {
	self    any    // the module it belongs to, to be found among the routes of the server
	session string // whose metrics count refusals; empty for a page of all sessions: nobody's
	logger  *zap.Logger
	clients []netip.Prefix // nil: the default
	hosts   hostSet
	origins map[webOrigin]struct{}
	site    atomic.Pointer[hostSet] // what the site itself names, once somebody needed it
	warned  atomic.Int64            // when a refusal was logged, in Unix time
}

// provision checks the settings. self is the module that the guard belongs to.
func (c Guard) provision(ctx caddy.Context, self any, session string) (*keeper, error) {
	g := &keeper{self: self, session: session, logger: ctx.Logger()}
	for _, field := range []struct {
		name   string
		values []string
		add    func(string) error
	}{
		{"allow_client", c.AllowClient, g.addClient},
		{"allow_host", c.AllowHost, g.hosts.add},
		{"allow_origin", c.AllowOrigin, g.addOrigin},
	} {
		for _, written := range field.values {
			value, err := caddy.NewReplacer().ReplaceOrErr(written, true, true)
			values := strings.Fields(strings.ToLower(value)) // a placeholder may hold several
			if err == nil && len(values) == 0 {
				err = errors.New("it is blank, which does not mean the default: write a value, or leave the setting out")
			}
			for i := 0; i < len(values) && err == nil; i++ {
				err = field.add(values[i])
			}
			if err != nil {
				return nil, fmt.Errorf("%s %q: %w", field.name, written, err)
			}
		}
	}
	return g, nil
}

// refusal is a request that goes no further. Its detail says which setting would
// allow it, or what to send instead.
type refusal struct {
	status              int
	kind, title, detail string
}

func (e *refusal) Error() string { return e.detail }

func forbidden(kind, title, format string, args ...any) *refusal {
	return &refusal{http.StatusForbidden, kind, title, fmt.Sprintf(format, args...)}
}

// verdictKey is where the last guard's *refusal, or a nil one, stands among the
// variables of a request.
const verdictKey = "device_flow.guard"

// admitHop is admit for the transport. Handlers of ours have judged most requests
// already, and refused ones come here by handle_errors. A proxy block with the
// transport and no handler before it is guarded all the same, without settings.
func (g *keeper) admitHop(req *http.Request, vars map[string]any) *refusal {
	if no, judged := vars[verdictKey].(*refusal); judged {
		return no
	}
	asked := req.WithContext(req.Context())
	if repl, ok := req.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		asked.Host, _ = repl.GetString("http.request.hostport") // in req, it is the upstream's
	}
	return g.admit(asked)
}

// admit returns nil if r may go on. For a plain caller it allocates nothing.
func (g *keeper) admit(r *http.Request) *refusal {
	if guardOff {
		return nil
	}
	vars, _ := r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	if no := g.checkClient(r, vars); no != nil {
		return no
	}
	// Before Host, which is the target's in a CONNECT.
	if !knownMethod(r.Method) {
		return &refusal{
			http.StatusMethodNotAllowed, "method-not-allowed", "Method not allowed",
			"This proxy passes on " + allowedMethods + ".",
		}
	}
	if r.URL.User != nil { // RFC 9110 §4.2.4
		return &refusal{
			http.StatusBadRequest, "userinfo", "Bad request target",
			"The address of the request holds a user name. Leave it out.",
		}
	}
	if no := g.checkHost(r); no != nil {
		return no
	}
	if no := checkUpgrade(r); no != nil {
		return no
	}
	if no := g.checkOrigin(r, vars); no != nil {
		return no
	}
	if hasAccessToken(r.URL.RawQuery) {
		return ownToken("query")
	}
	return nil
}

// turnAway answers a request that was refused, or leaves that to handle_errors.
func (g *keeper) turnAway(w http.ResponseWriter, r *http.Request, no *refusal) error {
	if vars, ok := r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any); ok {
		vars[verdictKey] = no
	}
	g.note(r, no)
	return writeRefusal(w, r, no)
}

// note counts a refusal, and logs it now and then.
func (g *keeper) note(r *http.Request, no *refusal) {
	if g.session != "" {
		metrics.requests.WithLabelValues(g.session, outcomeRefused).Inc()
	}
	// Whoever runs a device that shows no bodies looks into the log; whoever floods
	// the proxy shall not flood the log.
	now := time.Now().Unix()
	if last := g.warned.Load(); now-last >= 60 && g.warned.CompareAndSwap(last, now) {
		g.logger.Warn("refused a request (logged at most once a minute)",
			zap.String("reason", no.kind), zap.String("detail", no.detail), zap.String("remote", r.RemoteAddr))
	}
}
