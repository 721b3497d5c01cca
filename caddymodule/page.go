package caddymodule

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"html/template"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

// watcher is what the status page needs of a session.
type watcher interface {
	Status() flow.Status
	// Watch returns the status and a channel that closes at the next change.
	Watch() (flow.Status, <-chan struct{})
	// Demand says that someone is here. It starts an on-demand login if nothing
	// speaks against it, and never blocks.
	Demand()
	// Rouse has a token renewed that lapsed before the start. It starts no login.
	Rouse()
	// Login asks for a new code. It returns when the code is out, or with the
	// reason why there is none.
	Login(ctx context.Context) (flow.Status, error)
}

const (
	// firstCodeWait is how long a first view is held back so that it shows the
	// code already. Most servers answer within a few hundred milliseconds.
	firstCodeWait = 2 * time.Second
	// loginWait bounds the wait for the code behind the button.
	loginWait = 20 * time.Second
	// refreshHeader marks the page's own reload of its contents. A tab that
	// nobody looks at must not ask for code after code.
	refreshHeader = "Device-Flow-Refresh"
	// refreshQuery is the same for the reload of a browser without JavaScript.
	refreshQuery = "refresh"
	// sessionQuery names the session that an overview is asked about.
	sessionQuery = "session"
)

var (
	//go:embed page.html
	pageHTML string
	// pageTemplate is parsed for the first page, not at each start of a Caddy.
	pageTemplate = sync.OnceValue(func() *template.Template { return template.Must(template.New("pages").Parse(pageHTML)) })
)

// page is the status page of one site: HTML, JSON, plain text, a stream of
// events, the QR code, a health check and the form that starts a login.
type page struct {
	path    string // without a slash at the end
	find    func(*http.Request) (watcher, error)
	all     func() []watcher // of an overview; nil for the page of one session
	byKey   bool             // it is that of a session_key
	key     []byte           // of the form tokens
	streams atomic.Int64
	done    chan struct{}
	end     sync.Once
}

// newPage serves the page below path. find says which session a request is about.
func newPage(path string, find func(*http.Request) (watcher, error)) *page {
	return &page{
		path: strings.TrimRight(path, "/"),
		find: find,
		key:  formKey(),
		done: make(chan struct{}),
	}
}

// shutdown ends all open event streams: one of them would hold up the server's
// own shutdown for its whole grace period. It may be called more than once.
func (p *page) shutdown() { p.end.Do(func() { close(p.done) }) }

// match reports whether urlPath is one of the page's.
func (p *page) match(urlPath string) bool {
	_, ok := p.route(urlPath)
	return ok
}

// route is what urlPath asks for; "" is the page itself.
func (p *page) route(urlPath string) (string, bool) {
	rest, ok := strings.CutPrefix(urlPath, p.path)
	if !ok {
		return "", false
	}
	switch rest {
	case "", "/":
		return "", true
	case "/events", "/qr.svg", "/healthz", "/login", "/page.css", "/page.js", "/icon.svg":
		return rest[1:], true
	}
	return "", false
}

// ServeHTTP answers everything below the page's path.
func (p *page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	setPageHeaders(w.Header())
	route, ok := p.route(r.URL.Path)
	if !ok {
		p.refuse(w, r, http.StatusNotFound, "not-found")
		return
	}
	allow, allowed := "GET, HEAD", r.Method == http.MethodGet || r.Method == http.MethodHead
	if route == "login" {
		allow, allowed = "POST", r.Method == http.MethodPost
	}
	if !allowed {
		w.Header().Set("Allow", allow)
		p.refuse(w, r, http.StatusMethodNotAllowed, "method-not-allowed", "methods", allow)
		return
	}
	if p.asset(w, r, route) {
		return
	}
	if p.all != nil && !r.URL.Query().Has(sessionQuery) {
		p.overview(w, r, route)
		return
	}
	s, err := p.find(r)
	if unknown := (unknownSession{}); errors.As(err, &unknown) {
		p.refuse(w, r, http.StatusNotFound, "no-such-session", "name", clean(unknown.name, maxCode))
		return
	}
	if err != nil {
		w.Header().Set("Retry-After", "5")
		p.refuse(w, r, http.StatusServiceUnavailable, "no-session", "reason", clean(err.Error(), maxText))
		return
	}
	switch route {
	case "events":
		p.events(w, r, s)
	case "qr.svg":
		p.qr(w, r, s.Status())
	case "healthz":
		s.Rouse() // what waits for this to turn green makes no call before
		p.health(w, r, s.Status())
	case "login":
		p.login(w, r, s)
	default:
		p.show(w, r, s)
	}
}

// show answers GET of the page itself.
func (p *page) show(w http.ResponseWriter, r *http.Request, s watcher) {
	kind := pageType(w, r)
	if kind == typeJSON {
		p.json(w, r, s.Status())
		return
	}
	st := s.Status()
	if personHere(r) {
		st = demandCode(r.Context(), s)
	}
	if kind == typeHTML {
		p.html(w, r, http.StatusOK, st)
		return
	}
	v := newView(st, time.Now()) // English, as a serial console has no other letters
	reply(w, r, http.StatusOK, typePlain+"; charset=utf-8", []byte(v.plain()))
}

// pageType is the format that the page is asked for in.
func pageType(w http.ResponseWriter, r *http.Request) string {
	w.Header().Set("Vary", varyBy)
	return negotiate(r.Header.Values("Accept"), []string{typeHTML, typeJSON, typePlain}, typePlain)
}

// json writes one status, or those of the overview.
func (p *page) json(w http.ResponseWriter, r *http.Request, status any) {
	body, err := json.Marshal(status)
	if err != nil { // a time outside of RFC 3339 is the only way
		p.refuse(w, r, http.StatusInternalServerError, "internal")
		return
	}
	reply(w, r, http.StatusOK, typeJSON, append(body, '\n'))
}

// html writes the page for a person. notice is an extra line on top, a key of the
// catalogue and what to fill in.
func (p *page) html(w http.ResponseWriter, r *http.Request, status int, st flow.Status, notice ...string) {
	now := time.Now()
	v := languageOf(r).view(st, now)
	v.draw(st)
	v.Token = p.formToken(st.Session, now)
	if notice != nil {
		v.Notice = v.T(notice[0], notice[1:]...)
	}
	if p.all != nil {
		v.Session = label(st) // among several, "default" says something
	}
	p.render(w, r, status, "session", &v.frame, v)
}

// render writes one of the templates. data has f in it.
func (p *page) render(w http.ResponseWriter, r *http.Request, status int, name string, f *frame, data any) {
	p.place(r, f)
	var b bytes.Buffer
	if err := pageTemplate().ExecuteTemplate(&b, name, data); err != nil {
		p.refuse(w, r, http.StatusInternalServerError, "internal")
		return
	}
	w.Header().Set("Vary", varyBy)
	w.Header().Set("Content-Language", f.words.tag)
	reply(w, r, status, typeHTML+"; charset=utf-8", b.Bytes())
}

// place fills in the addresses.
func (p *page) place(r *http.Request, f *frame) {
	var self string
	f.Base, self = p.links(r)
	f.Page, f.ReloadPage, f.Assets = self, self+"?"+refreshQuery, assetVersion()
	if q := r.URL.Query(); p.all != nil && q.Has(sessionQuery) {
		f.Up, f.Query = self, sessionLink(q.Get(sessionQuery))
		f.Page, f.ReloadPage = self+f.Query, self+f.Query+"&"+refreshQuery
	}
}

// links gives the prefix of everything below the page, and the page itself, both
// relative to the request: a prefix that an earlier handler has stripped
// (handle_path) is then still there in the browser.
func (p *page) links(r *http.Request) (base, self string) {
	if r.URL.Path != p.path {
		return "./", "./" // at path/ or path/login
	}
	last := "./" + url.PathEscape(path.Base(p.path))
	return last + "/", last
}

// personHere tells a person who opens the page from everything else that sends a
// GET: the page's own reloads, prefetching, an <img> on somebody's web site.
func personHere(r *http.Request) bool {
	h := r.Header
	if r.Method != http.MethodGet || h.Get(refreshHeader) != "" || r.URL.Query().Has(refreshQuery) {
		return false
	}
	if h.Get("Sec-Purpose")+h.Get("Purpose")+h.Get("X-Moz") != "" {
		return false
	}
	dest := h.Get("Sec-Fetch-Dest")
	return dest == "" || dest == "document"
}

// demandCode says that someone is here and gives the code a moment to arrive, so
// that the first view shows it.
func demandCode(ctx context.Context, s watcher) flow.Status {
	ctx, cancel := context.WithTimeout(ctx, firstCodeWait)
	defer cancel()
	before := s.Status()
	s.Demand()
	for {
		st, changed := s.Watch()
		if st.Token != nil || st.Error != nil && (before.Error == nil || *st.Error != *before.Error) ||
			st.State != flow.StateLoginRequired && st.State != flow.StateUnavailable {
			return st
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return st
		}
	}
}

func (p *page) qr(w http.ResponseWriter, r *http.Request, st flow.Status) {
	c := languageOf(r)
	svg, ok := c.loginQR(st.Login)
	if !ok {
		p.refuse(w, r, http.StatusNotFound, "no-code")
		return
	}
	w.Header().Set("Vary", "Accept-Language")
	w.Header().Set("Content-Language", c.tag)
	reply(w, r, http.StatusOK, "image/svg+xml", []byte(svg))
}

// health is for probes.
func (p *page) health(w http.ResponseWriter, r *http.Request, st flow.Status) {
	code := http.StatusServiceUnavailable
	if healthy(st) {
		code = http.StatusOK
	}
	reply(w, r, code, typePlain+"; charset=utf-8", []byte(st.State+"\n"))
}

// refuse writes a problem that links back to the page.
func (p *page) refuse(w http.ResponseWriter, r *http.Request, status int, kind string, fill ...string) {
	var f frame
	p.place(r, &f)
	self := f.Page
	if kind == "no-such-session" {
		self = f.Up // which lists those that there are
	}
	words := func(c *catalogue) (string, string) {
		return c.text("refuse." + kind + ".title"), c.text("refuse."+kind+".says", fill...)
	}
	title, detail := words(english())
	problem{
		Type: problemType(kind), Title: title, Status: status, Detail: detail, StatusURL: self, words: words,
	}.write(w, r)
}
