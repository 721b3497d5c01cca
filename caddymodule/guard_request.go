package caddymodule

import (
	"bytes"
	"io"
	"net/http"
	"strings"
)

// allowedMethods is the Allow field of a 405: HTTP's own methods but CONNECT and
// TRACE, which could echo the token, and those of WebDAV, which scanners use.
const allowedMethods = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, QUERY, " +
	"PROPFIND, PROPPATCH, MKCOL, COPY, MOVE, LOCK, UNLOCK, REPORT, SEARCH"

// knownMethod reports whether a method is passed on. Methods are case-sensitive
// (RFC 9110 §9.1).
func knownMethod(method string) bool {
	switch method {
	case "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY",
		"PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK", "REPORT", "SEARCH":
		return true
	}
	return false
}

// checkUpgrade lets only a well-formed WebSocket handshake (RFC 6455 §4.1) turn
// the connection into another protocol: after that, no request on it is looked at.
func checkUpgrade(r *http.Request) *refusal {
	upgrade, settings := r.Header["Upgrade"], r.Header["Http2-Settings"]
	if upgrade == nil && settings == nil {
		return nil
	}
	handshake := len(upgrade) == 1 && strings.EqualFold(upgrade[0], "websocket") && settings == nil &&
		hasOne(r.Header, "Sec-Websocket-Key", "Sec-WebSocket-Key") && hasOne(r.Header, "Sec-Websocket-Version", "Sec-WebSocket-Version")
	if handshake && r.Method == http.MethodGet && r.ProtoAtLeast(1, 1) && r.ContentLength == 0 {
		return nil
	}
	return forbidden("upgrade-not-allowed", "Upgrade not allowed",
		"This proxy lets connections change to WebSocket only, and no setting changes that. Leave the Upgrade field out; for Java's HttpClient, ask for version HTTP_1_1.")
}

// hasOne reports whether a field is there once and with a value. At the last hop, it
// is spelt as the RFC does: the proxy writes it so.
func hasOne(h http.Header, name, inRFC string) bool {
	values := h[name]
	if values == nil {
		values = h[inRFC]
	}
	return len(values) == 1 && values[0] != ""
}

// ownToken refuses a caller's token in a place where the API might look (RFC 6750
// §2.2, §2.3): it would get two credentials, and not know whose call it is.
func ownToken(where string) *refusal {
	return &refusal{
		http.StatusBadRequest, "access-token-in-" + where, "The call brings a token of its own",
		"The " + where + " of the request holds an access_token. Leave it out: this proxy adds the token itself.",
	}
}

const accessToken = "access_token"

// hasAccessToken reports whether a query or a form has a parameter that some
// server would read as access_token.
func hasAccessToken[T ~string | ~[]byte](query T) bool {
	for i := 0; i < len(query); {
		var name bool
		if name, i = isAccessToken(query, i); name {
			return true
		}
		for i < len(query) && query[i] != '&' && query[i] != ';' {
			i++
		}
		i++
	}
	return false
}

// isAccessToken reads the name that begins at i, percent-decoded as it goes, and
// returns where it has stopped. PHP takes dots, spaces and opening brackets for
// underscores and forgets spaces in front, other servers disregard the case, and
// arrays of parameters are written with brackets.
func isAccessToken[T ~string | ~[]byte](query T, i int) (bool, int) {
	for n := 0; ; {
		c, width := decodedByte(query, i)
		if n == len(accessToken) {
			return width == 0 || c == '=' && width == 1 || c == '[' || c == 0, i
		}
		if width == 0 || c == '=' && width == 1 {
			return false, i
		}
		if c == ' ' && n == 0 {
			i += width
			continue
		}
		if c == ' ' || c == '.' || c == '[' {
			c = '_'
		}
		if c >= 'A' && c <= 'Z' {
			c |= 0x20
		}
		if c != accessToken[n] {
			return false, i
		}
		n++
		i += width
	}
}

// decodedByte is the byte that stands at i in its encoded form of that width, or of
// width 0 at the end of a parameter.
func decodedByte[T ~string | ~[]byte](query T, i int) (c byte, width int) {
	if i >= len(query) || query[i] == '&' || query[i] == ';' {
		return 0, 0
	}
	switch c = query[i]; {
	case c == '+':
		return ' ', 1
	case c == '%' && i+2 < len(query):
		hi, ok1 := unhex(query[i+1])
		lo, ok2 := unhex(query[i+2])
		if ok1 && ok2 {
			return hi<<4 | lo, 3
		}
	}
	return c, 1
}

func unhex(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c|0x20 >= 'a' && c|0x20 <= 'f':
		return c | 0x20 - 'a' + 10, true
	}
	return 0, false
}

// maxForm bounds how much of a form is looked at before it is passed on.
const maxForm = 64 << 10

// checkForm looks for a caller's token in a form (RFC 6750 §2.2). Only bodies that
// say they are forms are read ahead, nothing else waits for its end.
func checkForm(r *http.Request) *refusal {
	if guardOff || r.Body == nil || r.ContentLength == 0 || !isForm(r.Header["Content-Type"]) {
		return nil
	}
	var form bytes.Buffer
	_, err := form.ReadFrom(io.LimitReader(r.Body, maxForm))
	if hasAccessToken(form.Bytes()) {
		return ownToken("form")
	}
	read := io.Reader(&form)
	if err != nil { // the proxy shall hear of it as if nobody had read before
		read = io.MultiReader(read, failedReader{err})
	} else {
		read = io.MultiReader(read, r.Body)
	}
	r.Body = &peekedBody{read, r.Body}
	return nil
}

func isForm(types []string) bool {
	for _, t := range types {
		kind, _, _ := strings.Cut(t, ";")
		if strings.EqualFold(strings.TrimSpace(kind), "application/x-www-form-urlencoded") {
			return true
		}
	}
	return false
}

// peekedBody is a body of which a part has been read already.
type peekedBody struct {
	io.Reader
	io.Closer
}

type failedReader struct{ err error }

func (f failedReader) Read([]byte) (int, error) { return 0, f.err }
