package caddymodule

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

// problem is an answer that says what is wrong and what to do next (RFC 9457).
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	// The members below say why a call has no token; empty ones are left out.
	State           flow.State `json:"state,omitempty"`
	StatusURL       string     `json:"status_url,omitempty"`
	VerificationURI string     `json:"verification_uri,omitempty"`
	UserCode        string     `json:"user_code,omitempty"`

	// words says the title and the detail to a person. What machines and logs get is
	// English always: whoever reads a log or searches for a message has that one.
	words func(*catalogue) (title, detail string)
	// note is what a person gets to see besides, in English.
	note string
}

// varyBy names what the choice of format and language depends on.
const varyBy = "Accept, Accept-Language"

// problemType is the stable identifier of one kind of problem.
func problemType(kind string) string {
	return "urn:caddy-deviceflow:problem:" + strings.ReplaceAll(kind, "_", "-")
}

// writeUnavailable tells a caller that there is no token to serve the call with.
// It is written for whoever reads the log or the display of the failing device.
// statusURL is empty where there is no status page.
func writeUnavailable(w http.ResponseWriter, r *http.Request, st flow.Status, statusURL string, retryAfter time.Duration) {
	setRetryAfter(w.Header(), retryAfter)
	newUnavailable(st, statusURL, time.Now()).write(w, r)
}

// setRetryAfter writes the field in whole seconds, at least one.
func setRetryAfter(h http.Header, d time.Duration) {
	h.Set("Retry-After", fmt.Sprint(max(1, int64((d+time.Second-1)/time.Second))))
}

// writeRefusal tells a caller that the guard has refused the request, by itself or
// through handle_errors. It names nothing of the login: the caller may be anybody.
func writeRefusal(w http.ResponseWriter, r *http.Request, no *refusal) error {
	if err := caddyhttp.Error(no.status, no); handlesErrors(r, err) {
		no.allow(w.Header())
		w.Header().Set("Cache-Control", "no-store")
		return err
	}
	no.write(w, r)
	return nil
}

// allow says in an answer which methods there are (RFC 9110 §15.5.6).
func (e *refusal) allow(h http.Header) {
	if e.status == http.StatusMethodNotAllowed {
		h.Set("Allow", allowedMethods)
	}
}

func (e *refusal) write(w http.ResponseWriter, r *http.Request) {
	e.allow(w.Header())
	problem{
		Type: problemType(e.kind), Title: e.title, Status: e.status, Detail: e.detail,
		words: func(c *catalogue) (string, string) {
			kind := "guard." + e.kind
			if _, ok := c.find(kind + ".title"); !ok {
				kind = "guard.other"
			}
			return c.text(kind + ".title"), c.text(kind + ".says")
		},
		note: e.detail, // names the setting, and what it was that came
	}.write(w, r)
}

// newUnavailable words the problem of a session without a token.
func newUnavailable(st flow.Status, statusURL string, now time.Time) problem {
	p := problem{
		Type:      problemType(string(st.State)),
		Status:    http.StatusServiceUnavailable,
		State:     st.State,
		StatusURL: statusURL,
		words:     func(c *catalogue) (string, string) { return c.unavailable(st, statusURL, now) },
	}
	if l := english().login(st, now); st.State == flow.StatePending && l != nil {
		p.VerificationURI, p.UserCode = l.Link.Full(), l.Code
	}
	p.Title, p.Detail = p.words(english())
	return p
}

// unavailable is what is wrong and what to do about it.
func (c *catalogue) unavailable(st flow.Status, statusURL string, now time.Time) (title, detail string) {
	v := c.view(st, now)
	page := statusURL
	if page == "" {
		page = c.text("call.page")
	}
	switch {
	case st.State == flow.StatePending && v.Login != nil:
		return v.Title, c.text("call.pending", "address", v.Login.Link.Full(), "code", v.Login.Code, "left", v.Login.LeftWords)
	case st.State == flow.StateLoginRequired:
		return v.Title, join(v.Lead, c.text("call.login", "page", page))
	case st.State == flow.StateMisconfigured:
		details := ""
		if v.Detail != "" { // who has to fix it may see nothing but this answer
			details = c.text("call.details", "details", strings.TrimSuffix(v.Detail, "."))
		}
		return v.Title, join(v.Lead, v.Trouble, v.Next, details, c.text("call.more", "page", page))
	case st.State == flow.StateUnavailable:
		return v.Title, join(v.Lead, v.Trouble, v.Next, c.text("call.later"))
	}
	// The token came between the call and this answer.
	return c.text("call.came_title"), c.text("call.came")
}

// problemCSS is all the style of a problem's page. It is inline, as there may be
// no status page to fetch it from, and allowed by its hash.
const problemCSS = `body{margin:0 auto;max-width:36rem;padding:2rem 1rem;font:1.0625rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:#16202c;background:#fff}` +
	`h1{font-size:1.5rem;line-height:1.25;margin:0 0 .75rem}p{overflow-wrap:break-word;word-wrap:break-word}code{font:700 1.5rem/1.4 ui-monospace,Menlo,Consolas,monospace;letter-spacing:.08em}` +
	`.note{font-size:.9375rem;opacity:.8}a{display:inline-block;padding:.625rem 0;color:#0b57d0}@media(prefers-color-scheme:dark){body{color:#e8edf3;background:#0f141b}a{color:#8ab4ff}}`

var problemCSP = sync.OnceValue(func() string {
	sum := sha256.Sum256([]byte(problemCSS))
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
		"'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
})

// problemTemplate is parsed for the first such page, not at each start of a Caddy.
var problemTemplate = sync.OnceValue(func() *template.Template {
	return template.Must(template.New("problem").Parse(problemHTML))
})

const problemHTML = `<!DOCTYPE html>
<html lang="{{.Lang}}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{.Title}}</title>
<style>` + problemCSS + `</style>
</head>
<body>
<main>
<h1>{{.Title}}</h1>
<p>{{.Detail}}</p>
{{- with .Note}}
<p class="note" lang="en">{{.}}</p>
{{- end}}
{{- if .Code}}
<p><code>{{.Code}}</code></p>
{{- end}}
{{- if .Link.Href}}
<p><a href="{{.Link.Href}}" rel="noopener noreferrer">{{.Open}}</a></p>
{{- end}}
{{- if .StatusURL}}
<p><a href="{{.StatusURL}}">{{.OpenPage}}</a></p>
{{- end}}
</main>
</body>
</html>
`

// write answers with the problem in the format that the caller asks for.
func (p problem) write(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Vary", varyBy)
	switch negotiate(r.Header.Values("Accept"), []string{typeProblem, typeJSON, typePlain, typeHTML}, typeProblem) {
	case typePlain:
		reply(w, r, p.Status, typePlain+"; charset=utf-8", []byte(p.plain()))
	case typeHTML:
		body, c, err := p.html(r)
		if err != nil {
			reply(w, r, p.Status, typePlain+"; charset=utf-8", []byte(p.plain()))
			return
		}
		h.Set("Content-Language", c.tag)
		h.Set("Content-Security-Policy", problemCSP())
		h.Set("Referrer-Policy", "no-referrer")
		reply(w, r, p.Status, typeHTML+"; charset=utf-8", body)
	default:
		body, err := json.Marshal(p)
		if err != nil { // strings and a number: cannot be
			body = []byte(`{}`)
		}
		reply(w, r, p.Status, typeProblem, append(body, '\n'))
	}
}

// html is the problem as a page, in the reader's language.
func (p problem) html(r *http.Request) ([]byte, *catalogue, error) {
	c := languageOf(r)
	title, detail := p.words(c)
	to := newLink(p.VerificationURI)
	var b bytes.Buffer
	err := problemTemplate().Execute(&b, struct {
		Lang, Title, Detail, Note, Code, Open, OpenPage, StatusURL string
		Link                                                       link
	}{c.tag, title, detail, p.note, p.UserCode, c.text("call.open", "address", to.Text), c.text("call.open_page"), p.StatusURL, to})
	return b.Bytes(), c, err
}

func (p problem) plain() string {
	return p.Title + "\n" + p.Detail + "\n"
}
