package caddymodule

import (
	"fmt"
	"net"
	"net/url"
	"strings"
	"unicode"
)

const (
	// maxText and maxCode bound, in runes, what a server says and its user code.
	maxText = 256
	maxCode = 64
	// maxLink bounds a link in bytes.
	maxLink = 2048
)

// hostChars may stand in a host and port: names, IPv4 and IPv6 without a zone.
const hostChars = "abcdefghijklmnopqrstuvwxyz0123456789-._:[]"

// clean makes a server's string fit to be shown: no control characters, which
// steer a terminal, no bidirectional or invisible ones, which make one text look
// like another, white space as single spaces, and not more than limit runes.
func clean(s string, limit int) string {
	var b strings.Builder
	n, space := 0, false
	for _, r := range s {
		switch {
		case unicode.IsSpace(r):
			space = n > 0
			continue
		case unicode.In(r, unicode.Cc, unicode.Cf, unicode.Cs, unicode.Co, unicode.Zl, unicode.Zp,
			unicode.Other_Default_Ignorable_Code_Point, unicode.Noncharacter_Code_Point, unicode.Variation_Selector):
			continue
		}
		if n >= limit {
			b.WriteString("...")
			break
		}
		if space {
			b.WriteByte(' ')
			n++
		}
		b.WriteRune(r)
		n, space = n+1, false
	}
	return b.String()
}

// link is a URL that may be followed, or else only its text.
type link struct {
	// Href is empty unless the URL passes safeLink.
	Href string
	// Text is for reading and typing: without the scheme where https is meant.
	Text string
	Host string
}

// newLink makes a link of a server's URL. Its zero value stands for none.
func newLink(raw string) link {
	if raw == "" {
		return link{}
	}
	u, ok := safeLink(raw)
	if !ok {
		return link{Text: clean(raw, maxText)}
	}
	text := u.String()
	if u.Scheme == "https" {
		text = strings.TrimSuffix(strings.TrimPrefix(text, "https://"), "/")
	}
	return link{Href: u.String(), Text: clean(text, maxText), Host: u.Host}
}

// Parts is Text cut after each slash, where a narrow screen may break it.
func (l link) Parts() []string { return strings.SplitAfter(l.Text, "/") }

// Full is the URL for a plain text, where it stands for itself.
func (l link) Full() string {
	if l.Href != "" {
		return l.Href
	}
	return l.Text
}

// safeLink parses raw and reports whether a person may be sent there: absolute,
// https (http on loopback, for trials), no user name that poses as a host, and an
// ASCII host, so that what is read is what is opened. The rest is made ASCII. A server with an
// international name can send its xn-- form.
func safeLink(raw string) (*url.URL, bool) {
	if len(raw) > maxLink {
		return nil, false
	}
	for _, r := range raw {
		// A browser takes a backslash for a slash, and drops tabs and line ends. The
		// others are in no valid URL (RFC 3986 §2).
		if r <= ' ' || r == '\\' || r == '"' || r == '<' || r == '>' || r == 0x7f || r == unicode.ReplacementChar {
			return nil, false
		}
	}
	u, err := url.Parse(raw)
	if err != nil || u.Opaque != "" || u.User != nil || u.Hostname() == "" {
		return nil, false
	}
	for _, c := range u.Host {
		if c >= 0x80 || !strings.ContainsRune(hostChars, unicode.ToLower(c)) {
			return nil, false
		}
	}
	// Path and fragment are escaped by URL itself, the query is not.
	if u.RawQuery = escapeLetters(u.RawQuery); len(u.String()) > maxLink {
		return nil, false
	}
	switch u.Scheme {
	case "https":
		return u, true
	case "http":
		return u, isLoopback(u.Hostname())
	}
	return nil, false
}

// escapeLetters percent-encodes what is not ASCII, as a browser does: what steers a
// terminal or turns the direction of text is among it.
func escapeLetters(query string) string {
	var b strings.Builder
	for i := range len(query) {
		if c := query[i]; c < 0x80 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

func isLoopback(host string) bool {
	host = strings.ToLower(host)
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
