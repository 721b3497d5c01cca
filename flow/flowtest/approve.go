package flowtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed" // the page and its style
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"
)

var (
	//go:embed approve.html
	approveHTML string
	//go:embed approve.css
	approveCSS string

	approvePage = template.Must(template.New("approve").Parse(approveHTML))
	approveCSP  = func() string {
		sum := sha256.Sum256([]byte(approveCSS))
		return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
			"'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
	}()
)

// Approve approves the pending login with that user code, as the configured user. Case and hyphen do not matter.
func (s *Server) Approve(userCode string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.decideLocked(userCode, approved, s.configLocked().User)
}

// ApproveAs is Approve as another user. Empty members of u are left empty.
func (s *Server) ApproveAs(userCode string, u User) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.decideLocked(userCode, approved, u)
}

// Deny refuses the pending login with that user code.
func (s *Server) Deny(userCode string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.decideLocked(userCode, denied, User{})
}

// Expire ends the lifetime of a device code that has not been turned into tokens.
func (s *Server) Expire(userCode string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.findLocked(userCode)
	if d == nil || d.ended || d.expired() {
		return fmt.Errorf("flowtest: no login to expire with the user code %q", userCode)
	}
	d.expires = d.issued // long past or at least now
	return nil
}

// ApproveAll approves every pending login and returns how many there were.
func (s *Server) ApproveAll() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	user, n := s.configLocked().User, 0
	for _, d := range s.order {
		if d.open() {
			d.verdict, d.user = approved, user
			n++
		}
	}
	return n
}

// Pending returns the user codes that wait for a decision, oldest first.
func (s *Server) Pending() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, d := range s.order {
		if d.open() {
			out = append(out, d.userCode)
		}
	}
	return out
}

// AwaitPending returns the user code of the newest pending login, waiting for one if there is none.
func (s *Server) AwaitPending(ctx context.Context) (string, error) {
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if codes := s.Pending(); len(codes) > 0 {
			return codes[len(codes)-1], nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return "", fmt.Errorf("flowtest: waiting for a login to begin: %w", ctx.Err())
		case <-s.life.Done():
			return "", fmt.Errorf("flowtest: waiting for a login to begin: the server is closed")
		}
	}
}

// findLocked looks a user code up. The newest wins, should two ever be alike.
func (s *Server) findLocked(userCode string) *device {
	wanted := normalise(userCode)
	for _, v := range slices.Backward(s.order) {
		if wanted != "" && normalise(v.userCode) == wanted {
			return v
		}
	}
	return nil
}

func (s *Server) decideLocked(userCode string, v verdict, u User) error {
	d := s.findLocked(userCode)
	if d == nil || !d.open() {
		return fmt.Errorf("flowtest: no pending login with the user code %q", userCode)
	}
	d.verdict, d.user = v, u
	return nil
}

// readPageForm reads the approval page's parameters: from the URL for GET, which changes nothing, else from the body.
func readPageForm(w http.ResponseWriter, r *http.Request) (url.Values, *refusal) {
	text := func(status int, message string) *refusal {
		return &refusal{reply: reply{
			status: status, body: []byte(message + "\n"),
			header: http.Header{"Content-Type": {"text/plain; charset=utf-8"}, "Cache-Control": {"no-store"}},
		}}
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		return r.URL.Query(), nil
	case http.MethodPost:
	default:
		bad := text(http.StatusMethodNotAllowed, "The method must be GET or POST.")
		bad.reply.header.Set("Allow", "GET, HEAD, POST")
		return url.Values{}, bad
	}
	// Another site must not be able to approve in the name of whoever looks at it.
	if err := http.NewCrossOriginProtection().Check(r); err != nil {
		return url.Values{}, text(http.StatusForbidden, "This form was sent by another site.")
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyLimit))
	if err != nil {
		return url.Values{}, text(http.StatusBadRequest, "The form cannot be read.")
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return url.Values{}, text(http.StatusBadRequest, "The form cannot be read.")
	}
	return form, nil
}

// page is what the template shows.
type page struct {
	Style    template.CSS
	Title    string
	Path     string // of the form
	State    string // enter, confirm, approved, denied or gone
	Error    string
	UserCode string
	Client   string
	User     User
	Initial  string
	Audience []string
	Scopes   []scopeLine
}

type scopeLine struct{ Name, Meaning string }

// servePage is the verification page (RFC 8628 section 3.3): first the code, then what it stands for, then the outcome.
func (s *Server) servePage(x *exchange) reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := page{
		Style: template.CSS(approveCSS), //nolint:gosec // our own file
		Path:  x.r.URL.Path, Client: x.cfg.ClientName, User: x.cfg.User, UserCode: x.form.Get("user_code"),
	}
	first, _ := utf8.DecodeRuneInString(p.User.Name)
	p.Initial = string(first)
	d := s.findLocked(p.UserCode)
	status := http.StatusOK
	switch {
	case p.UserCode == "" && x.r.Method != http.MethodPost:
		p.State = "enter"
	case d == nil:
		p.State, status = "enter", http.StatusNotFound
		p.Error = "That code is not known here. Check it on your device and type it again."
	case d.expired():
		p.State, status = "gone", http.StatusGone
		p.Error = "This code has expired. Ask your device for a new one."
	case !d.open():
		p.State, status = "gone", http.StatusGone
		p.Error = "This code has been used. Your device needs nothing more from you."
	default:
		p.describe(d)
		if x.r.Method != http.MethodPost {
			p.State = "confirm"
			break
		}
		switch x.form.Get("action") {
		case "approve":
			p.State, d.verdict, d.user = "approved", approved, x.cfg.User
		case "deny":
			p.State, d.verdict = "denied", denied
		default:
			p.State = "confirm"
		}
	}
	p.Title = map[string]string{
		"enter": "Connect a device", "confirm": "Connect this device?", "approved": "Device connected",
		"denied": "Device refused", "gone": "Code no longer valid",
	}[p.State]

	var body bytes.Buffer
	if err := approvePage.Execute(&body, p); err != nil {
		return errorReply(http.StatusInternalServerError, "server_error", "the page cannot be rendered")
	}
	return reply{status: status, body: body.Bytes(), header: http.Header{
		"Content-Type":            {"text/html; charset=utf-8"},
		"Cache-Control":           {"no-store"},
		"Content-Security-Policy": {approveCSP},
		"Referrer-Policy":         {"same-origin"}, // the address can hold the code; no-referrer would hide our own origin from us
		"X-Content-Type-Options":  {"nosniff"},
		"X-Frame-Options":         {"DENY"}, // RFC 8628 section 5.4: nobody is to be led to approve unawares
	}}
}

// describe fills in what the login asks for.
func (p *page) describe(d *device) {
	p.UserCode = d.userCode
	if d.audience != "" {
		p.Audience = append(p.Audience, d.audience)
	}
	p.Audience = append(p.Audience, d.resources...)
	for _, name := range d.scope {
		meaning := map[string]string{
			"openid": "Know who you are", "profile": "See your name", "email": "See your e-mail address",
			"offline_access": "Stay connected while you are away",
		}[name]
		if verb, what, ok := strings.Cut(name, ":"); ok && meaning == "" {
			switch verb {
			case "read":
				meaning = "Read your " + what
			case "write":
				meaning = "Change your " + what
			}
		}
		if meaning == "" {
			meaning = "Use " + name
		}
		p.Scopes = append(p.Scopes, scopeLine{name, meaning})
	}
}
