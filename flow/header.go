package flow

import (
	"context"
	"fmt"
	"net/http"
	"net/textproto"
	"regexp"
	"slices"
	"strings"
)

// headerRE is a field name (RFC 9110 §5.1).
var headerRE = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")

// ownHeaders belong to the exchange itself, or to the connection.
var ownHeaders = []string{
	"Accept", "Accept-Encoding", "Connection", "Content-Length", "Content-Type", "Expect", "Host", "Keep-Alive",
	"Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
}

// validateHeaders reports names that [Config.Headers] cannot have.
func (c *Config) validateHeaders(bad func(format string, args ...any)) {
	seen := make(map[string]bool)
	for name := range c.Headers {
		canonical := textproto.CanonicalMIMEHeaderKey(name)
		switch {
		case !headerRE.MatchString(name):
			bad("header %q: this is no name of a header field", clean(name, 64))
		case slices.Contains(ownHeaders, canonical):
			bad("header %s: this field is set by the flow itself; remove the setting", canonical)
		case canonical == "Authorization" && c.ClientAuth == ClientAuthBasic:
			bad("header Authorization: 'client_auth basic' sets this field; remove one of them")
		case seen[canonical]:
			bad("header %s is given twice, in two spellings: remove one of them", canonical)
		}
		seen[canonical] = true
	}
}

// addHeaders adds the configured header fields to a request, except for those
// that it has, and returns their values, which nobody shall repeat.
func (c *client) addHeaders(ctx context.Context, op string, h http.Header) ([]Secret, error) {
	var secrets []Secret
	for name, value := range c.Headers {
		v, err := value(ctx)
		if err == nil && strings.ContainsFunc(v.Reveal(), func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
			err = fmt.Errorf("its value holds a line end or another control character")
		}
		if err != nil {
			return nil, &Error{Kind: KindConfiguration, Op: op, Code: CodeConfiguration, Err: fmt.Errorf("header %s: %w", name, err)}
		}
		secrets = append(secrets, v)
		if h.Get(name) == "" {
			h.Set(name, v.Reveal())
		}
	}
	return secrets, nil
}
