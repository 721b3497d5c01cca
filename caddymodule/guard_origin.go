package caddymodule

import (
	"errors"
	"net/http"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// webOrigin is a web origin (RFC 6454) in lower case. A port that the scheme implies
// is spelt out.
type webOrigin struct{ scheme, host, port string }

// parseOrigin reads what Origin holds. "null" is none.
func parseOrigin(s string) (o webOrigin, ok bool) {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok || scheme == "" || strings.ContainsAny(rest, "/?#@\\ ,") {
		return webOrigin{}, false
	}
	host, port, ok := splitHostPort(rest)
	if !ok {
		return webOrigin{}, false
	}
	o = webOrigin{strings.ToLower(scheme), strings.ToLower(host), port}
	if port == "" {
		o.port = defaultPorts[o.scheme]
	}
	return o, true
}

var defaultPorts = map[string]string{"http": "80", "https": "443"}

// names reports whether a Host field means the host and port of o.
func (o webOrigin) names(hostField string) bool {
	host, port, ok := splitHostPort(hostField)
	if port == "" {
		port = defaultPorts[o.scheme]
	}
	return ok && strings.EqualFold(host, o.host) && port == o.port
}

// refererOrigin is the origin of the page that a Referer names. Devices put all
// sorts of things there, browsers an absolute http or https URL.
func refererOrigin(s string) (o webOrigin, fromPage bool) {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok || !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https") {
		return webOrigin{}, false
	}
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		rest = rest[:i]
	}
	o, _ = parseOrigin(scheme + "://" + rest) // the zero origin is foreign
	return o, true
}

// addOrigin reads one value of allow_origin.
func (g *keeper) addOrigin(s string) error {
	if s == "*" || s == "null" {
		return errors.New("this would let any web page in: name the origins, as in https://app.example.com")
	}
	o, ok := parseOrigin(strings.TrimSuffix(s, "/"))
	if !ok || strings.Contains(s, "*") {
		return errors.New("write scheme, host and port of a web origin without a path, as in https://app.example.com or http://localhost:3000")
	}
	if g.origins == nil {
		g.origins = make(map[webOrigin]struct{})
	}
	g.origins[o] = struct{}{}
	return nil
}

// checkOrigin refuses what a page of another origin has a browser send. Programs
// send none of these fields.
//
// Sec-Fetch-Site comes with every request of a browser since 2023, but only to
// https and to loopback. Origin comes with what may change something, and with
// WebSocket handshakes. For the rest, a GET to an address in the network or by an
// old browser, there is Referer, unless the page suppresses it.
func (g *keeper) checkOrigin(r *http.Request, vars map[string]any) *refusal {
	sites, origins, referers := r.Header["Sec-Fetch-Site"], r.Header["Origin"], r.Header["Referer"]
	if sites == nil && origins == nil && referers == nil {
		return nil
	}
	if len(sites) > 1 || len(origins) > 1 || len(referers) > 1 {
		return originRefused("another origin")
	}
	// same-origin is a browser's word for it, none is a person's doing: the address
	// bar, a bookmark. What else there may be is not known and not trusted.
	sameOrigin := len(sites) == 1 && sites[0] == "same-origin"
	harmless := sites == nil || sameOrigin || sites[0] == "none"
	if origins != nil {
		if origins[0] == "null" && sameOrigin { // a page of ours with a strict Referrer-Policy posts its forms so
			return nil
		}
		o, ok := parseOrigin(origins[0])
		if g.allowsOrigin(o) {
			return nil
		}
		// Where TLS ends before us, a browser that says same-origin knows the scheme.
		if ok && harmless && o.names(r.Host) && (sameOrigin || o.scheme == schemeOf(r, vars)) {
			return nil
		}
		return originRefused(origins[0])
	}
	if sites != nil && harmless {
		if !sameOrigin && isSpeculative(r.Header) {
			return speculationRefused
		}
		return nil
	}
	from, isPage := webOrigin{}, false
	if referers != nil {
		from, isPage = refererOrigin(referers[0])
	}
	// An https page names itself to an http address only where TLS ends before us.
	if g.allowsOrigin(from) || harmless && (!isPage || from.names(r.Host)) {
		return nil
	}
	if from.host == "" {
		return originRefused("another origin")
	}
	return originRefused(from.scheme + "://" + from.host)
}

// isSpeculative reports whether a browser fetches ahead what a person may open, and
// says by Sec-Purpose (Fetch standard) that it does. Chromium says "none" in
// Sec-Fetch-Site of what the speculation rules of any page have it fetch.
func isSpeculative(h http.Header) bool {
	return h["Sec-Purpose"] != nil || h["Purpose"] != nil
}

// speculationRefused has the browser ask again when the person goes there.
var speculationRefused = forbidden("speculative-request", "Nothing is fetched ahead",
	"A browser has asked for this before anybody has opened it, perhaps because a web page told it to, and no setting allows that. Open the address yourself.")

// allowsOrigin reports whether allow_origin has o.
func (g *keeper) allowsOrigin(o webOrigin) bool {
	_, ok := g.origins[o]
	return ok
}

func originRefused(from string) *refusal {
	return forbidden("origin-not-allowed", "Another site's page may not call",
		"This is a request of a web page of %s. If such pages may call, add their origin to the setting allow_origin. "+
			"To open this address yourself, type it into the address bar.", clean(from, maxText))
}

// schemeOf is the scheme that the caller used, as far as can be known: with
// trusted_proxies, TLS may end before us.
func schemeOf(r *http.Request, vars map[string]any) string {
	trusted, _ := vars[caddyhttp.TrustedProxyVarKey].(bool)
	if r.TLS != nil || trusted && strings.EqualFold(r.Header.Get("X-Forwarded-Proto"), "https") {
		return "https"
	}
	return "http"
}

// isPreflight reports whether a browser asks whether a page may call (Fetch
// standard, CORS-preflight request).
func isPreflight(r *http.Request) bool {
	return !guardOff && r.Method == http.MethodOptions && r.Header["Access-Control-Request-Method"] != nil
}

// crossOrigin is the origin of a request by a page that allow_origin has, or "".
func (g *keeper) crossOrigin(r *http.Request) string {
	values := r.Header["Origin"]
	if len(values) != 1 || len(g.origins) == 0 {
		return ""
	}
	if o, ok := parseOrigin(values[0]); !ok || !g.allowsOrigin(o) {
		return ""
	}
	return values[0]
}

// answerPreflight answers in the place of the API, which must not be called with a
// token for a mere question. A page that allow_origin does not have learns nothing.
func (g *keeper) answerPreflight(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	if from := g.crossOrigin(r); from != "" {
		allowFrom(h, from)
		if method := r.Header.Get("Access-Control-Request-Method"); knownMethod(method) {
			h.Set("Access-Control-Allow-Methods", method)
		}
		if fields := r.Header.Get("Access-Control-Request-Headers"); isFieldList(fields) {
			h.Set("Access-Control-Allow-Headers", fields)
		}
		// Chromium's Private Network Access, before it asked the person instead.
		if r.Header.Get("Access-Control-Request-Private-Network") == "true" {
			h.Set("Access-Control-Allow-Private-Network", "true")
		}
		h.Set("Access-Control-Max-Age", "600")
	}
	w.WriteHeader(http.StatusNoContent)
}

// isFieldList reports whether s is a list of field names of reasonable length.
func isFieldList(s string) bool {
	if s == "" || len(s) > 1024 {
		return false
	}
	for name := range strings.SplitSeq(s, ",") {
		if !isToken(strings.TrimSpace(name)) {
			return false
		}
	}
	return true
}

// allowFrom lets pages of one origin read the answer, whatever the API says about
// other origins: it does not know who calls.
func allowFrom(h http.Header, from string) {
	h.Set("Access-Control-Allow-Origin", from)
	for _, v := range h.Values("Vary") {
		if strings.EqualFold(v, "Origin") {
			return
		}
	}
	h.Add("Vary", "Origin")
}
