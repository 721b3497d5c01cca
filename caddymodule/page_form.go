package caddymodule

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"net/http"
	"net/url"
	"path"
	"sync"
	"time"
)

// formWindow is the unit of a form token's life: it is good for one to two of them.
// A page opened in the evening still works at three in the morning.
const formWindow = 12 * time.Hour

// formKey is the key of all form tokens of this process. It outlives a reload of
// the configuration, and so does a page that is open in a browser.
var formKey = sync.OnceValue(func() []byte {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails, see crypto/rand
	return key
})

// formToken proves that the form comes from a page of ours. It is a MAC over
// session and time rather than a cookie sent twice: cookies know no port, so two
// proxies on one host would overwrite each other's, and devices without a cookie
// jar could not log in. It is not bound to a viewer, which would add nothing:
// whoever can read the page may press its button, and other sites cannot read it.
func (p *page) formToken(session string, now time.Time) string {
	mac := hmac.New(sha256.New, p.key)
	var window [8]byte
	binary.BigEndian.PutUint64(window[:], uint64(now.Unix()/int64(formWindow/time.Second))) //nolint:gosec // bits, not a number
	mac.Write(window[:])
	mac.Write([]byte("login\x00" + p.path + "\x00" + session))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

func (p *page) validToken(token, session string, now time.Time) bool {
	for _, t := range []time.Time{now, now.Add(-formWindow)} {
		if hmac.Equal([]byte(token), []byte(p.formToken(session, t))) {
			return true
		}
	}
	return false
}

// login answers POST of the form: 303 back to the page when the code is out.
func (p *page) login(w http.ResponseWriter, r *http.Request, s watcher) {
	if !sameOrigin(r) {
		p.refuse(w, r, http.StatusForbidden, "cross-origin")
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, 4<<10)
	st := s.Status()
	if err := r.ParseForm(); err != nil || !p.validToken(r.PostForm.Get("token"), st.Session, time.Now()) {
		p.refuse(w, r, http.StatusForbidden, "form-expired")
		return
	}
	if st.Token != nil && r.PostForm.Get("confirm") != "1" {
		p.refuse(w, r, http.StatusConflict, "confirmation-required")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), loginWait)
	defer cancel()
	if _, err := s.Login(ctx); err != nil {
		w.Header().Set("Retry-After", "5")
		why := clean(err.Error(), maxText)
		if negotiate(r.Header.Values("Accept"), []string{typeHTML, typeProblem, typeJSON, typePlain}, typeProblem) == typeHTML {
			p.html(w, r, http.StatusServiceUnavailable, s.Status(), "refuse.login-failed.says", "reason", why)
			return
		}
		p.refuse(w, r, http.StatusServiceUnavailable, "login-failed", "reason", why)
		return
	}
	// Relative for the same reason as links.
	back := "./"
	if p.path != "" {
		back = "../" + url.PathEscape(path.Base(p.path))
	}
	if p.all != nil {
		back += sessionLink(st.Session)
	}
	w.Header().Set("Location", back)
	reply(w, r, http.StatusSeeOther, typePlain+"; charset=utf-8", []byte("The code is out. See the page.\n"))
}

// sameOrigin reports whether a browser sent the request from this very page, or
// whether no browser is involved. Sec-Fetch-Site comes on trustworthy origins
// only, so on a LAN address it is Origin that tells. "null" is what the page
// itself sends as Origin where the browser takes no-referrer strictly and the
// page's own meta element for nothing; then Sec-Fetch-Site has to speak for it.
func sameOrigin(r *http.Request) bool {
	site, origin := r.Header.Values("Sec-Fetch-Site"), r.Header.Values("Origin")
	if len(site) > 1 || len(origin) > 1 {
		return false
	}
	fromHere := len(site) == 1 && site[0] == "same-origin"
	if len(site) == 1 && !fromHere && site[0] != "none" {
		return false
	}
	if len(origin) == 0 {
		return true
	}
	if origin[0] == "null" {
		return fromHere
	}
	o, ok := parseOrigin(origin[0])
	return ok && o.names(r.Host)
}
