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
	// The members below are those of contract "no token"; empty ones are left out.
	State           flow.State `json:"state,omitempty"`
	StatusURL       string     `json:"status_url,omitempty"`
	VerificationURI string     `json:"verification_uri,omitempty"`
	UserCode        string     `json:"user_code,omitempty"`
}

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
	if no.status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", allowedMethods) // RFC 9110 §15.5.6
	}
	if err := caddyhttp.Error(no.status, no); handlesErrors(r, err) {
		w.Header().Set("Cache-Control", "no-store")
		return err
	}
	no.write(w, r)
	return nil
}

func (e *refusal) write(w http.ResponseWriter, r *http.Request) {
	problem{Type: problemType(e.kind), Title: e.title, Status: e.status, Detail: e.detail}.write(w, r)
}

// newUnavailable words the problem of a session without a token.
func newUnavailable(st flow.Status, statusURL string, now time.Time) problem {
	v := newView(st, now)
	p := problem{
		Type:      problemType(string(st.State)),
		Title:     v.Title,
		Status:    http.StatusServiceUnavailable,
		State:     st.State,
		StatusURL: statusURL,
	}
	page := "the status page of this proxy"
	if statusURL != "" {
		page = statusURL
	}
	switch {
	case st.State == flow.StatePending && v.Login != nil:
		p.VerificationURI, p.UserCode = v.Login.Link.Full(), v.Login.Code
		p.Detail = fmt.Sprintf("Open %s in any browser and enter the code %s within %s. Then call again.",
			p.VerificationURI, p.UserCode, v.Login.LeftWords)
	case st.State == flow.StateLoginRequired:
		p.Detail = join(v.Lead, "Open "+page+" in a browser and log in there. Then call again.")
	case st.State == flow.StateMisconfigured:
		details := ""
		if v.Detail != "" { // who has to fix it may see nothing but this answer
			details = "Details: " + strings.TrimSuffix(v.Detail, ".") + "."
		}
		p.Detail = join(v.Lead, v.Trouble, v.Next, details, "More at "+page+".")
	case st.State == flow.StateUnavailable:
		p.Detail = join(v.Lead, v.Trouble, v.Next, "Call again a little later.")
	default:
		// The token came between the call and this answer.
		p.Title, p.Detail = "No token at the time of the call", "Call again."
	}
	return p
}

// problemCSS is all the style of a problem's page. It is inline, as there may be
// no status page to fetch it from, and allowed by its hash.
const problemCSS = `body{margin:0 auto;max-width:36rem;padding:2rem 1rem;font:1.0625rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:#16202c;background:#fff}` +
	`h1{font-size:1.5rem;line-height:1.25;margin:0 0 .75rem}p{overflow-wrap:break-word;word-wrap:break-word}code{font:700 1.5rem/1.4 ui-monospace,Menlo,Consolas,monospace;letter-spacing:.08em}` +
	`a{display:inline-block;padding:.625rem 0;color:#0b57d0}@media(prefers-color-scheme:dark){body{color:#e8edf3;background:#0f141b}a{color:#8ab4ff}}`

var problemCSP = func() string {
	sum := sha256.Sum256([]byte(problemCSS))
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
		"'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
}()

var problemTemplate = template.Must(template.New("problem").Parse(`<!DOCTYPE html>
<html lang="en">
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
{{- if .Code}}
<p><code>{{.Code}}</code></p>
{{- end}}
{{- if .Link.Href}}
<p><a href="{{.Link.Href}}" rel="noopener noreferrer">Open {{.Link.Text}}</a></p>
{{- end}}
{{- if .StatusURL}}
<p><a href="{{.StatusURL}}">Open the login page of this proxy</a></p>
{{- end}}
</main>
</body>
</html>
`))

// write answers with the problem in the format that the caller asks for.
func (p problem) write(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Vary", "Accept")
	switch negotiate(r.Header.Values("Accept"), []string{typeProblem, typeJSON, typePlain, typeHTML}, typeProblem) {
	case typePlain:
		reply(w, r, p.Status, typePlain+"; charset=utf-8", []byte(p.plain()))
	case typeHTML:
		var b bytes.Buffer
		err := problemTemplate.Execute(&b, struct {
			Title, Detail, Code, StatusURL string
			Link                           link
		}{p.Title, p.Detail, p.UserCode, p.StatusURL, newLink(p.VerificationURI)})
		if err != nil {
			reply(w, r, p.Status, typePlain+"; charset=utf-8", []byte(p.plain()))
			return
		}
		h.Set("Content-Security-Policy", problemCSP)
		h.Set("Referrer-Policy", "no-referrer")
		reply(w, r, p.Status, typeHTML+"; charset=utf-8", b.Bytes())
	default:
		body, err := json.Marshal(p)
		if err != nil { // strings and a number: cannot be
			body = []byte(`{}`)
		}
		reply(w, r, p.Status, typeProblem, append(body, '\n'))
	}
}

func (p problem) plain() string {
	return p.Title + "\n" + p.Detail + "\n"
}

// join puts sentences together and leaves out empty ones.
func join(sentences ...string) string {
	var kept []string
	for _, s := range sentences {
		if s != "" {
			kept = append(kept, s)
		}
	}
	return strings.Join(kept, " ")
}
