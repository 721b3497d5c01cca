package e2e

import "slices"

// attack is one way in which a page of another origin can have a browser send a request. What it does stands in
// testdata/hostile.js under its name; this says what becomes of it where nothing stands in its way.
type attack struct {
	name   string
	ext    string // of the path: what the API answers with
	method string // that the API sees, which has to be told from that of a preflight
	reads  bool   // whether the page can read the answer of an API that allows it

	// blocked says why the browser sends nothing, guarded or not, at those places, or everywhere. Such an attack is
	// tried all the same and must come to nothing, but that says nothing of the guard.
	blocked string
	at      []string
}

// held says why an attack from a place comes to nothing even without the guard; if it does not, it is "".
func (a attack) held(place string) string {
	if a.at == nil || slices.Contains(a.at, place) {
		return a.blocked
	}
	return ""
}

var attacks = []attack{
	{name: "speculative prefetch", ext: ".html", blocked: "only https and loopback are speculated upon", at: []string{rebinding}},
	{name: "speculative prefetch without referrer", ext: ".html", blocked: "only https and loopback are speculated upon", at: []string{rebinding}},
	{name: "speculative prerender", ext: ".html", blocked: "only https and loopback are speculated upon", at: []string{rebinding}},

	{name: "fetch GET", reads: true},
	{name: "fetch GET with credentials", reads: true},
	{name: "fetch GET no-cors"},
	{name: "fetch GET no-cors without referrer"},
	{name: "fetch HEAD no-cors", method: "HEAD"},
	{name: "fetch GET redirected", reads: true},
	{name: "fetch POST text", method: "POST", reads: true},
	{name: "fetch POST urlencoded no-cors", method: "POST"},
	{name: "fetch POST no-cors without referrer", method: "POST"},
	{name: "fetch POST no-cors redirected", method: "POST"},
	{name: "fetch POST keepalive", method: "POST"},
	{name: "fetch POST JSON", method: "POST", reads: true},
	{name: "fetch PUT", method: "PUT", reads: true},
	{name: "fetch DELETE", method: "DELETE", reads: true},
	{name: "fetch own method", method: "FOO", reads: true},
	{name: "fetch own header", reads: true},
	{name: "fetch TRACE", method: "TRACE", blocked: "fetch throws: a forbidden method (Fetch standard, 2.2.1)"},
	{name: "XMLHttpRequest GET", reads: true},
	{name: "XMLHttpRequest POST", method: "POST", reads: true},
	{name: "sendBeacon", method: "POST"},
	{name: "sendBeacon form", method: "POST"},
	{name: "WebSocket", ext: ".ws", reads: true},
	{name: "EventSource", ext: ".events", reads: true},

	{name: "img", ext: ".svg", reads: true},
	{name: "img crossorigin", ext: ".svg", reads: true},
	{name: "img redirected", ext: ".svg", reads: true},
	{name: "script", ext: ".js", reads: true},
	{name: "script module", ext: ".js", reads: true},
	{name: "link stylesheet", ext: ".css", reads: true},
	{name: "link preload", ext: ".svg"},
	{name: "link prefetch", ext: ".html"},
	{name: "link modulepreload", ext: ".js"},
	{name: "link icon", ext: ".svg"},
	{name: "link manifest", ext: ".json", blocked: "an opaque origin has no manifest", at: []string{opaqueOrigin}},
	{name: "style import", ext: ".css", reads: true},
	{name: "font", ext: ".woff"},
	{name: "video", ext: ".mp4"},
	{name: "object", ext: ".html"},
	{name: "embed", ext: ".html"},
	{name: "iframe", ext: ".html"},
	{name: "iframe without referrer", ext: ".html"},
	{name: "iframe sandboxed", ext: ".html"},
	{name: "fetch from a data: frame", method: "POST"},
	{name: "fetch from a sandboxed frame"},
	{name: "WebSocket from a sandboxed frame", ext: ".ws"},
	{name: "report of a content policy", method: "POST"},

	{name: "form GET", ext: ".html"},
	{name: "form POST urlencoded", ext: ".html", method: "POST"},
	{name: "form POST text", ext: ".html", method: "POST"},
	{name: "form POST multipart", ext: ".html", method: "POST"},
	{name: "form POST redirected", ext: ".html", method: "POST"},

	{name: "window.open", ext: ".html"},
	{name: "window.open without opener", ext: ".html"},
	{name: "window.open blank, then there", ext: ".html"},
	{name: "form POST into a new window", ext: ".html", method: "POST"},
	{name: "link clicked", ext: ".html"},
	{name: "link without referrer", ext: ".html"},
	{name: "link with a ping", method: "POST"},
	{name: "location set", ext: ".html"},
	{name: "meta refresh", ext: ".html"},
	{name: "redirect of a page", ext: ".html"},
	{name: "form POST of a whole page", ext: ".html", method: "POST"},

	{name: "identity provider", ext: ".json", blocked: "for secure contexts", at: []string{foreignName, opaqueOrigin, rebinding}},

	{name: "worker imports", ext: ".js", reads: true},
	{name: "worker fetches", reads: true},
	{
		name: "worker of the proxy", ext: ".js", blocked: "a worker's script has to be of the page's own origin",
		at: []string{anotherPort, anotherLoopback, foreignName, opaqueOrigin},
	},
	{name: "service worker fetches", reads: true, blocked: "service workers are for secure contexts", at: []string{foreignName, opaqueOrigin, rebinding}},
	{name: "service worker of the proxy", ext: ".js", blocked: "a service worker's script has to be of the page's own origin, in a secure context"},
}
