package caddymodule

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// refusals are the calls that the proxy turns away for another reason than the login, as docs/operations.md has them.
var refusals = []struct {
	when string
	call func(t *testing.T) *httptest.ResponseRecorder
}{
	{"the caller's address is not one of those that may call", guarded(func(r *http.Request) { r.RemoteAddr = "203.0.113.7:50000" })},
	{"the caller calls the proxy by a name that is not its own", guarded(func(r *http.Request) { r.Host = "proxy.example.com" })},
	{"a web page of another site calls", guarded(func(r *http.Request) { r.Header.Set("Origin", "https://app.example.com") })},
	{"a browser fetches ahead", guarded(func(r *http.Request) {
		r.Header.Set("Sec-Fetch-Site", "none")
		r.Header.Set("Sec-Purpose", "prefetch")
	})},
	{"`require_header` is set, and the caller does not send it", guarded(func(r *http.Request) { r.Header.Del("X-Proxy-Key") })},
	{"the caller wants another protocol than WebSocket", guarded(func(r *http.Request) { r.Header.Set("Upgrade", "h2c") })},
	{"a method that is not passed on", guarded(func(r *http.Request) { r.Method = http.MethodTrace })},
	{"an address with a user name", guarded(func(r *http.Request) { r.URL.User = url.User("alice") })},
	{"the caller sends a token of its own in the query", guarded(func(r *http.Request) { r.URL.RawQuery = "access_token=x" })},
	{"the same in a form", func(t *testing.T) *httptest.ResponseRecorder {
		r := localRequest(http.MethodPost, "/things", strings.NewReader("access_token=x"))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		return throughGuard(t, r)
	}},
	{"`session_key` is set, and the call does not say whose it is", keyedCall("")},
	{"the same, and what it says is too long", keyedCall(strings.Repeat("x", maxKey+1))},
	{"`audience`, `resource` or `scope` hang on the request, and it has no value for them", func(t *testing.T) *httptest.ResponseRecorder {
		to, err := (&Target{Audience: "{http.request.header.X-Api}"}).provision()
		if err != nil {
			t.Fatal(err)
		}
		r := served(asked())
		_, no := to.source(nil, r)
		return declined(t, r, no)
	}},
	{"`session_key`: too many devices wait for a person", func(t *testing.T) *httptest.ResponseRecorder { return declined(t, served(asked()), tooManyLogins()) }},
	{"`session_key`: all of `max_sessions` are busy", func(t *testing.T) *httptest.ResponseRecorder { return declined(t, served(asked()), tooManySessions()) }},
}

// guarded has the guard judge a good call after a change.
func guarded(change func(*http.Request)) func(*testing.T) *httptest.ResponseRecorder {
	return func(t *testing.T) *httptest.ResponseRecorder {
		t.Helper()
		r := asked("X-Proxy-Key", "x")
		change(r)
		return throughGuard(t, r)
	}
}

// throughGuard is what a handler with the default guard and a require_header answers.
func throughGuard(t *testing.T, r *http.Request) *httptest.ResponseRecorder {
	t.Helper()
	need, err := (&RequiredHeader{Name: "X-Proxy-Key"}).provision()
	if err != nil {
		t.Fatal(err)
	}
	if r.Method == http.MethodPost {
		need = nil
	}
	w := httptest.NewRecorder()
	h := &Handler{guard: kept(t, Guard{}), need: need}
	if err := h.ServeHTTP(w, served(r), caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return nil })); err != nil {
		t.Fatal(err)
	}
	return w
}

// keyedCall is what a device is told that says so who it is.
func keyedCall(key string) func(*testing.T) *httptest.ResponseRecorder {
	return func(t *testing.T) *httptest.ResponseRecorder {
		t.Helper()
		r := served(asked("X-Device-Id", key))
		_, no := (&keyed{setting: "{http.request.header.X-Device-Id}", header: "X-Device-Id"}).ofRequest(r, false)
		return declined(t, r, no)
	}
}

// declined is what the handler answers to such an error.
func declined(t *testing.T, r *http.Request, err error) *httptest.ResponseRecorder {
	t.Helper()
	no, after := refusalOf(err)
	if no == nil {
		t.Fatalf("%v is no refusal", err)
	}
	w := httptest.NewRecorder()
	if err := (&Handler{guard: kept(t, Guard{})}).decline(w, r, no, after); err != nil {
		t.Fatal(err)
	}
	return w
}

// TestOperationsRefusalsAreTrue makes each of these calls and writes down the answer. With -update it writes the table
// in docs/operations.md anew.
func TestOperationsRefusalsAreTrue(t *testing.T) {
	const begin, end = "<!-- refusals -->\n", "<!-- /refusals -->\n"
	table := "\n| what has happened | answer | what the caller is told |\n|---|---|---|\n"
	for _, c := range refusals {
		w := c.call(t)
		var said problem
		if err := json.Unmarshal(w.Body.Bytes(), &said); err != nil || said.Status != w.Code {
			t.Fatalf("%s: %d %s, %v", c.when, w.Code, w.Body, err)
		}
		answer := fmt.Sprintf("%d `%s`", w.Code, strings.TrimPrefix(said.Type, "urn:caddy-deviceflow:problem:"))
		if after := w.Header().Get("Retry-After"); after != "" {
			answer += ", `Retry-After: " + after + "`"
		}
		table += "| " + c.when + " | " + answer + " | " + said.Title + ". " + said.Detail + " |\n"
	}
	requirePart(t, "../docs/operations.md", begin, end, table+"\n")
}

// requirePart requires that this stands in a file between two lines. With -update it writes it there.
func requirePart(t *testing.T, file, begin, end, part string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(text), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", file)
	}
	want := head + begin + part + end + tail
	if *updatePages {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want != string(text) {
		t.Errorf("the table in %s is not what happens; look at it, and if it is right run go test -update\n%s", file, part)
	}
}
