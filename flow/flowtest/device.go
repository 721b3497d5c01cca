package flowtest

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// device is one device authorization (RFC 8628).
type device struct {
	code      string
	userCode  string
	scope     []string
	audience  string
	resources []string
	expires   time.Time
	interval  time.Duration

	verdict    verdict
	user       User // who approved
	pending    int  // polls answered authorization_pending
	issued     time.Time
	lastAnswer time.Time // of the last poll; zero before the first
	ended      bool      // the client was given a final answer
	grant      *grant    // what came of it
	inFlight   map[*exchange]context.Context
}

type verdict int

const (
	undecided verdict = iota
	approved
	denied
)

func (d *device) expired() bool { return !time.Now().Before(d.expires) }

func (d *device) open() bool { return d.verdict == undecided && !d.ended && !d.expired() }

// slowDown is RFC 8628 section 3.5: 5 seconds more, for this and all later polls.
func (d *device) slowDown() { d.interval += 5 * time.Second }

// heed takes note of a scripted answer to a poll, so that what the client does next is judged by what it was told.
func (d *device) heed(out reply) {
	var body struct {
		Error       string `json:"error"`
		AccessToken string `json:"access_token"`
	}
	if out.status >= 500 || json.Unmarshal(out.body, &body) != nil {
		return
	}
	switch body.Error {
	case "slow_down":
		d.slowDown()
	case "access_denied", "expired_token", "invalid_grant", "invalid_client", "unauthorized_client",
		"unsupported_grant_type", "invalid_request", "invalid_scope":
		d.ended = out.status != http.StatusTooManyRequests // 429 is a rate limit, whatever it is called
	case "":
		d.ended = body.AccessToken != ""
	}
}

// serveDevice is the device authorization endpoint (RFC 8628 section 3.1).
func (s *Server) serveDevice(x *exchange) reply {
	scope, bad := parseScope(x.form.Get("scope"))
	if bad == nil {
		scope, bad = x.cfg.grantScope(scope)
	}
	if bad != nil {
		return *bad
	}
	audience, resources := x.form.Get("audience"), x.form["resource"]
	if bad := x.cfg.checkTargets(audience, resources); bad != nil {
		return *bad
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.forgetLocked(now)
	d := &device{
		code: randomToken(), userCode: newUserCode(), scope: scope, audience: audience, resources: slices.Clone(resources),
		expires: now.Add(x.cfg.CodeLifetime), interval: x.cfg.Interval, issued: now,
		inFlight: map[*exchange]context.Context{},
	}
	if x.cfg.AutoApprove {
		d.verdict, d.user = approved, x.cfg.User
	}
	s.devices[d.code] = d
	s.order = append(s.order, d)
	close(s.changed)
	s.changed = make(chan struct{})

	page := x.cfg.base() + x.cfg.Flavour.paths().page
	return jsonReply(http.StatusOK, map[string]any{
		"device_code":               d.code,
		"user_code":                 d.userCode,
		"verification_uri":          page,
		"verification_uri_complete": page + "?user_code=" + url.QueryEscape(d.userCode),
		"expires_in":                seconds(x.cfg.CodeLifetime),
		"interval":                  seconds(d.interval),
	})
}

// forgetLocked drops device codes that ended a day ago, so that a server can run for ever.
func (s *Server) forgetLocked(now time.Time) {
	s.order = slices.DeleteFunc(s.order, func(d *device) bool {
		old := now.Sub(d.expires) > 24*time.Hour
		if old {
			delete(s.devices, d.code)
		}
		return old
	})
}

// beginPollLocked judges a poll at its arrival, before any script: two at a time, and the pace.
func (s *Server) beginPollLocked(x *exchange) {
	d := s.devices[x.form.Get("device_code")]
	if d == nil {
		return
	}
	now := time.Now()
	if othersLocked(d.inFlight) {
		s.violateLocked("poll: two polls at a time on the code %s", d.userCode)
	}
	if d.ended {
		s.violateLocked("poll: after the final answer for the code %s", d.userCode)
	}
	if since := now.Sub(d.issued); d.lastAnswer.IsZero() && len(d.inFlight) == 0 && since < d.interval {
		// RFC 8628 section 3.5 counts between polls only, so this is answered in earnest.
		s.violateLocked("poll: the first, %v after the code was issued; the interval is %v", since, d.interval)
	}
	if since := now.Sub(d.lastAnswer); !d.lastAnswer.IsZero() && since < d.interval {
		x.pace = fmt.Sprintf("%v after the last answer; the interval is %v", since, d.interval)
		s.violateLocked("poll: too fast, %s", x.pace)
	}
	x.device = d
	d.lastAnswer = now // moved on when the answer is given
	d.inFlight[x] = x.r.Context()
}

// servePoll is the token endpoint for the device_code grant (RFC 8628 sections 3.4 and 3.5).
func (s *Server) servePoll(x *exchange) reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	fail := func(code, description string) reply {
		return errorReply(x.cfg.Flavour.status(code), code, description)
	}
	if x.form.Get("device_code") == "" {
		s.violateLocked("poll: device_code is missing")
		return fail("invalid_request", "device_code is missing")
	}
	d := x.device
	switch {
	case d == nil:
		s.violateLocked("poll: with an unknown device code")
		return fail("invalid_grant", "unknown device code")
	case d.grant != nil:
		// RFC 6749 section 4.1.2 for codes used twice: deny, and revoke what was issued.
		d.grant.dead = true
		return fail("invalid_grant", "the device code was used before; its tokens are revoked")
	case d.ended && x.cfg.Flavour == Auth0:
		return fail("invalid_grant", "Invalid or expired device code.")
	case d.expired():
		d.ended = true
		return fail("expired_token", "the device code has expired")
	case x.pace != "":
		d.slowDown()
		return fail("slow_down", "polling faster than the interval")
	case d.verdict == denied:
		d.ended = true
		return fail("access_denied", "the account holder refused")
	}
	if d.verdict == undecided {
		if n := x.cfg.ApproveAfter; n <= 0 || d.pending < n {
			d.pending++
			return fail("authorization_pending", "the account holder has not yet decided")
		}
		d.verdict, d.user = approved, x.cfg.User
	}
	g := &grant{
		user: d.user, scope: d.scope, audience: d.audience, resources: d.resources,
		inFlight: map[*exchange]context.Context{},
	}
	audience, scope, bad := x.cfg.narrow(g, x.form)
	if bad != nil {
		return *bad
	}
	d.ended, d.grant = true, g
	s.stats.Logins++
	g.login = s.stats.Logins
	refresh := ""
	if !x.cfg.OmitRefreshToken && (x.cfg.Flavour != Auth0 || slices.Contains(g.scope, "offline_access")) {
		refresh = s.newRefreshLocked(g)
	}
	return s.issueLocked(x.cfg, g, audience, scope, refresh)
}

// serveOtherGrant answers token requests of any other kind.
func (s *Server) serveOtherGrant(x *exchange) reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x.form.Get("grant_type") == "" {
		s.violateLocked("token: grant_type is missing")
		return errorReply(http.StatusBadRequest, "invalid_request", "grant_type is missing")
	}
	s.violateLocked("token: unsupported grant type")
	return errorReply(http.StatusBadRequest, "unsupported_grant_type", "only the device_code and refresh_token grants are offered")
}

// newUserCode draws eight letters from the 20 of RFC 8628 section 6.1, which spell nothing and are not mistaken.
func newUserCode() string {
	const letters = "BCDFGHJKLMNPQRSTVWXZ"
	out := make([]byte, 0, 9)
	buf := make([]byte, 1)
	for len(out) < 9 {
		if len(out) == 4 {
			out = append(out, '-')
		}
		_, _ = rand.Read(buf)
		if n := int(buf[0]); n < 240 { // 240 is a multiple of 20: no letter is likelier
			out = append(out, letters[n%len(letters)])
		}
	}
	return string(out)
}

// normalise makes user codes comparable (RFC 8628 section 6.1): without case and punctuation.
func normalise(userCode string) string {
	return strings.Map(func(r rune) rune {
		if (r < 'A' || r > 'Z') && (r < '0' || r > '9') {
			return -1
		}
		return r
	}, strings.ToUpper(userCode))
}

func randomToken() string {
	buf := make([]byte, 32)
	_, _ = rand.Read(buf) // never fails: crypto/rand ends the program instead
	return base64.RawURLEncoding.EncodeToString(buf)
}

// seconds is a duration as JSON has it: whole seconds as an integer, and a fraction only where a test asks for one.
func seconds(d time.Duration) json.Number {
	if d%time.Second == 0 {
		return json.Number(fmt.Sprint(int64(d / time.Second)))
	}
	return json.Number(fmt.Sprint(d.Seconds()))
}
