package caddymodule

import (
	"errors"
	"net/http"

	"go.uber.org/zap"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

// RequiredHeader is a header field that callers have to send.
type RequiredHeader struct {
	// The name of the field.
	Name string `json:"name"`

	// What it has to hold: a secret between the callers and the proxy, which is not
	// passed on. Write {file./path} or {env.NAME}; it is read when the configuration
	// is loaded. Caddy's logs show the header fields of requests, except for
	// Proxy-Authorization and Authorization: name one of these. Default: anything.
	Value string `json:"value,omitempty"`
}

// requirement is a RequiredHeader at work. Nil requires nothing.
type requirement struct {
	name  string // canonical
	value flow.Secret
}

// provision resolves the value, which must not get into the configuration.
func (c *RequiredHeader) provision() (*requirement, error) {
	if c == nil {
		return nil, nil
	}
	need := &requirement{name: http.CanonicalHeaderKey(c.Name)}
	switch need.name {
	case "Host", "Connection", "Content-Length", "Transfer-Encoding", "Trailer", "Te", "Upgrade":
		return nil, errors.New("require_header " + c.Name + ": HTTP itself needs this field; choose another, as in Proxy-Authorization")
	}
	if !isToken(c.Name) {
		return nil, errors.New("require_header: write the name of a header field, as in Proxy-Authorization")
	}
	if c.Value == "" {
		return need, nil
	}
	var err error
	need.value, err = resolveSecret("require_header "+c.Name, c.Value)
	if err == nil && need.value.IsZero() {
		err = errors.New("require_header " + c.Name + ": the value is empty: write the secret into it, or leave it out")
	}
	return need, err
}

// warn says if a log of Caddy would have the secret. Caddy logs a copy of each
// request that it has made before any handler sees the request, at each error of the
// server even without an access log, and leaves credentials out by their names alone.
func (n *requirement) warn(logger *zap.Logger, logsCredentials bool) {
	if n == nil || n.value.IsZero() {
		return
	}
	switch n.name {
	case "Authorization", "Proxy-Authorization", "Cookie":
		if logsCredentials {
			logger.Warn("with log_credentials, Caddy writes the secret of require_header into its logs: take log_credentials out", zap.String("field", n.name))
		}
	default:
		logger.Warn("Caddy writes the secret of require_header into its logs, as it does with all fields but those of credentials: "+
			"write 'require_header Proxy-Authorization …' and have callers send that, or delete request>headers>"+n.name+" by a log filter", zap.String("field", n.name))
	}
}

// check refuses a caller that does not send the field, or takes the secret off the
// request, so that neither the API nor a handler that follows has it.
func (n *requirement) check(r *http.Request) *refusal {
	if n == nil || guardOff {
		return nil
	}
	values := r.Header[n.name]
	if n.value.IsZero() {
		if len(values) > 0 {
			return nil
		}
	} else if len(values) == 1 && n.value.Equal(flow.NewSecret(values[0])) {
		delete(r.Header, n.name)
		return nil
	}
	return forbidden("header-required", "A header field is missing or wrong",
		"Calls have to carry the field %s as the setting require_header says.", n.name)
}
