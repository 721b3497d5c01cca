package caddymodule

import (
	"net/http"
	"slices"
	"strings"
)

// keepPrivate sees to it that no shared cache on the way to the caller keeps an
// answer that was given to the token. RFC 9111 §3.5 forbids that by itself, but
// only where the cache can see an Authorization field in the request, and the
// caller's has none. So an answer of which the API has not said that a shared
// cache may keep it (public, s-maxage, must-revalidate), or that none may (private,
// no-store), gets `private`.
//
// A 304 without the field stays so: it would replace the field of the stored
// answer (RFC 9111 §3.2), which has said it all. A 401 is the API's own, and a 101
// is no answer that a cache could keep.
func keepPrivate(status int, h http.Header) {
	control := h["Cache-Control"]
	if status == http.StatusSwitchingProtocols || status == http.StatusUnauthorized ||
		status == http.StatusNotModified && len(control) == 0 || knowsSharedCaches(control) {
		return
	}
	// One line: there are caches that read no second.
	line := "private"
	for _, c := range slices.Backward(control) {
		if s := strings.Trim(c, " \t,"); s != "" {
			line = s + ", " + line
		}
	}
	h["Cache-Control"] = []string{line}
}

// knowsSharedCaches reports whether Cache-Control has a directive that decides for
// shared caches. A private with field names decides about these fields only
// (RFC 9111 §5.2.2.7).
func knowsSharedCaches(lines []string) bool {
	for _, rest := range lines {
		for rest != "" {
			var directive string
			directive, rest = cutDirective(rest)
			name, _, argument := strings.Cut(directive, "=")
			switch name = strings.ToLower(strings.Trim(name, " \t")); name {
			case "public", "s-maxage", "must-revalidate", "no-store":
				return true
			case "private":
				if !argument {
					return true
				}
			}
		}
	}
	return false
}

// cutDirective cuts a list at its first comma outside of a quoted string
// (RFC 9110 §5.6.1 and §5.6.4).
func cutDirective(s string) (directive, rest string) {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '"':
			quoted = !quoted
		case quoted && s[i] == '\\':
			i++
		case !quoted && s[i] == ',':
			return s[:i], s[i+1:]
		}
	}
	return s, ""
}
