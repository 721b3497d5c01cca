package caddymodule

import (
	"net/url"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// linkCases says which addresses of a server may be opened with one press.
var linkCases = map[string]bool{
	"https://acme.eu.auth0.com/activate":             true,
	"HTTPS://login.example.com/device":               true,
	"https://login.example.com:8443/device":          true,
	"https://[2001:db8::1]/device":                   true,
	"https://xn--bcher-kva.example/device":           true,
	"https://login.example.com/ger%C3%A4t":           true,
	"http://localhost:9090/device":                   true,
	"http://idp.localhost/device":                    true,
	"http://127.0.0.1:9090/device":                   true,
	"http://[::1]:9090/device":                       true,
	"http://login.example.com/device":                false,
	"http://localhost.example.com/device":            false,
	"http://127.0.0.1.example.com/":                  false,
	"javascript:alert(1)":                            false,
	"JaVaScRiPt:alert(1)//https://a.example":         false,
	"\x01javascript:alert(1)":                        false,
	"data:text/html,<script>alert(1)</script>":       false,
	"//evil.example/device":                          false,
	"/device":                                        false,
	"device":                                         false,
	"https:evil.example":                             false,
	"https:///evil.example":                          false,
	"https://":                                       false,
	"https://acme.eu.auth0.com@evil.example/":        false,
	"https://user:password@login.example.com/":       false,
	"https://@login.example.com/":                    false,
	`https://login.example.com\@evil.example/`:       false,
	"https://login.example.com/a b":                  false,
	"https://login.example.com/\r\nSet-Cookie:a=b":   false,
	"https://login.example.com/\u202eevil":           true, // percent-encoded in the link, and stripped from its text
	"https://b\u00fccher.example/device":             false,
	"https://\u0430pple.com/":                        false,
	"https://login\"onclick=x.example.com/":          false,
	"https://\u212aelvin.example/":                   false, // lower case of this sign is an ASCII k
	"https://login%2eexample.com/":                   false,
	"https://login.example.com:port/":                false,
	"ftp://login.example.com/":                       false,
	"https://e.example/" + strings.Repeat("a", 4096): false,
}

func TestPageLinkCheck(t *testing.T) {
	for raw, want := range linkCases {
		if _, ok := safeLink(raw); ok != want {
			t.Errorf("%.60q: %v, want %v", raw, ok, want)
		}
	}
}

func TestPageLinkTextIsWhatOneTypes(t *testing.T) {
	for raw, want := range map[string]link{
		"https://acme.eu.auth0.com/activate": {"https://acme.eu.auth0.com/activate", "acme.eu.auth0.com/activate", "acme.eu.auth0.com"},
		"https://acme.eu.auth0.com/":         {"https://acme.eu.auth0.com/", "acme.eu.auth0.com", "acme.eu.auth0.com"},
		"http://localhost:9090/device":       {"http://localhost:9090/device", "http://localhost:9090/device", "localhost:9090"},
		"javascript:alert(1)":                {"", "javascript:alert(1)", ""},
		"":                                   {},
	} {
		if got := newLink(raw); got != want {
			t.Errorf("%q: %+v, want %+v", raw, got, want)
		}
	}
}

func TestPageTextIsCleaned(t *testing.T) {
	for in, want := range map[string]string{
		"Ada Lovelace":                      "Ada Lovelace",
		"  a \r\n\t b\u00a0c\u2028d ":       "a b c d",
		"\x1b[31mred\x1b[0m\x07\u009b2J":    "[31mred[0m2J",
		"ab\u202ecd\u2066ef\u2069\u200f":    "abcdef",
		"ze\u200bro\u200d\ufeff\u00adwidth": "zerowidth",
		"tag\U000e0041\ufe0f":               "tag",
		"\xff\xfeok":                        "\ufffd\ufffdok",
		"Zoë 山田 😀":                          "Zoë 山田 😀",
		"":                                  "",
		"\u202e\n":                          "",
		strings.Repeat("ä", 300):            strings.Repeat("ä", 256) + "...",
		strings.Repeat("ä", 256):            strings.Repeat("ä", 256),
	} {
		if got := clean(in, maxText); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzPageLink(f *testing.F) {
	for raw := range linkCases {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		u, ok := safeLink(raw)
		if !ok {
			if l := newLink(raw); l.Href != "" || l.Host != "" {
				t.Fatalf("%q is refused and linked: %+v", raw, l)
			}
			return
		}
		again, err := url.Parse(u.String())
		if err != nil {
			t.Fatalf("%q gives %q: %v", raw, u, err)
		}
		if again.Scheme != "https" && (again.Scheme != "http" || !isLoopback(again.Hostname())) {
			t.Fatalf("%q: scheme %q", raw, again.Scheme)
		}
		if again.User != nil || again.Host == "" || again.Host != u.Host || strings.ContainsAny(u.String(), "\\ \t\r\n<>\"") ||
			strings.ContainsFunc(u.String(), func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Fatalf("%q gives %q", raw, u)
		}
		if _, ok := safeLink(u.String()); !ok {
			t.Fatalf("%q gives %q, which is refused", raw, u)
		}
	})
}

func FuzzPageClean(f *testing.F) {
	f.Add("a\x1b[31m\u202eb", 3)
	f.Fuzz(func(t *testing.T, in string, limit int) {
		if limit < 1 || limit > 1000 {
			return
		}
		out := clean(in, limit)
		if !utf8.ValidString(out) || utf8.RuneCountInString(out) > limit+4 {
			t.Fatalf("%q", out)
		}
		for _, r := range out {
			if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
				t.Fatalf("%q has %U", out, r)
			}
		}
	})
}

func FuzzPageAccept(f *testing.F) {
	for _, s := range []string{"", "*/*", "text/html;q=0.5,application/json", `text/html;a="b,c\"";q=1`, ",;=/q"} {
		f.Add(s)
	}
	offers := []string{typeHTML, typeJSON, typePlain}
	f.Fuzz(func(t *testing.T, accept string) {
		got := negotiate([]string{accept}, offers, typePlain)
		if got != typeHTML && got != typeJSON && got != typePlain {
			t.Fatalf("%q: %q", accept, got)
		}
		for _, m := range parseAccept(accept) {
			if !(m.q >= 0 && m.q <= 1) || !isToken(m.kind) || !isToken(m.sub) {
				t.Fatalf("%q: %+v", accept, m)
			}
		}
	})
}
