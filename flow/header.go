package flow

import (
	"context"
	"fmt"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
)

// alphanumeric are the characters that all names may have. Sets of characters instead
// of regular expressions: these would be compiled at each start.
const alphanumeric = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

// isFieldName reports whether a header field can be called so (RFC 9110 §5.1).
func isFieldName(s string) bool {
	return s != "" && strings.TrimLeft(s, alphanumeric+"!#$%&'*+.^_`|~-") == ""
}

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
		case !isFieldName(name):
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
