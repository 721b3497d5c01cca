package flow_test

import (
	"strings"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

// oracle is what is known about a run from outside, by the server's own books.
type oracle struct {
	// held is the login that all instances have had at some moment, 0 for none,
	// and token one of its access tokens.
	held  int
	token string
	// over are the logins, up to this one, that may be gone: somebody has logged
	// out, or what was known of them could not be stored.
	over   int
	logout time.Time
	// blind is until when the store may not have what the instances know.
	blind time.Time
	used  map[*instance]string // the access token that was last seen in use
}

const (
	spreads = 30 * time.Second // how soon a logout is known everywhere
	forEver = 1000 * time.Hour
)

func (m *model) storeFails()         { m.blind = time.Now().Add(forEver) }
func (m *model) healed()             { m.blind = minTime(m.blind, time.Now().Add(3*time.Minute)) }
func (m *model) isBlind() bool       { return time.Now().Before(m.blind) }
func (m *model) loggedOut()          { m.logout = time.Now() }
func (m *model) forgetLogins()       { m.over = m.as.Stats().Logins }
func (m *model) logoutIsFresh() bool { return !m.logout.IsZero() && time.Since(m.logout) < spreads }

// instanceEnds notes that what the store does not have is lost.
func (m *model) instanceEnds() {
	if m.isBlind() {
		m.forgetLogins()
	}
}

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// check asserts what holds at all times.
func (m *model) check() {
	if m.logoutIsFresh() {
		m.forgetLogins()
	} else if !m.logout.IsZero() && m.isBlind() {
		m.forgetLogins() // it may not have got around
	}
	m.checkServer()
	m.checkAPIs()
	m.checkGivenUp()
	m.checkWithheld()
	m.hold()
}

// checkServer: no refresh token is sent again by who has had its answer; and as
// long as stores work and answers arrive, a strict server has nothing to object.
func (m *model) checkServer() {
	for n, i := range m.all {
		i.link.mu.Lock()
		if i.link.resent > 0 {
			m.Errorf("instance %d has sent a refresh token again after its answer", n)
		}
		i.link.mu.Unlock()
	}
	if !m.stores && !m.answers {
		if v := m.as.Stats().Violations; len(v) > 0 {
			m.Errorf("the server objects: %q", v)
		}
	}
}

// checkAPIs: a token goes to the API that it was issued for, and no other.
func (m *model) checkAPIs() {
	for n, i := range m.all {
		for _, want := range append(modelWants, flow.Want{}) {
			t := m.source(i.Session, want).Current()
			if t == nil {
				continue
			}
			if info, ok := m.as.Inspect(t.Value().Reveal()); !ok || strings.Join(info.Audience, " ") != want.Audience {
				m.Errorf("instance %d has a token for %q where one for %q belongs", n, info.Audience, want.Audience)
			}
		}
	}
}

// checkGivenUp: a login is given up only when the server has ended it.
func (m *model) checkGivenUp() {
	if m.held <= m.over || m.held != m.as.Stats().Logins || m.isBlind() { // a newer one takes its place
		return
	}
	if info, _ := m.as.Inspect(m.token); info.Ended {
		return
	}
	for n, i := range m.all {
		if st := i.Status(); st.State == flow.StateLoginRequired {
			m.Errorf("instance %d has given up login %d that the server has not ended: %s", n, m.held, asJSON(st))
		}
	}
}

// checkWithheld: who has had a token goes on using it, or another, while it is good.
func (m *model) checkWithheld() {
	if m.used == nil {
		m.used = map[*instance]string{}
	}
	for n, i := range m.all {
		if t := i.Current(); t != nil {
			m.used[i] = t.Value().Reveal()
			continue
		}
		info, ok := m.as.Inspect(m.used[i])
		// Who has it from another may count its time from the look before.
		if ok && info.Valid && info.Login > m.over && !m.clocks && time.Until(info.Expires) > time.Minute {
			m.Errorf("instance %d withholds a token that is good for %v: %s", n, time.Until(info.Expires), asJSON(i.Status()))
		}
	}
}

// hold notes the login that all have.
func (m *model) hold() {
	login, token := 0, ""
	for _, i := range m.all {
		t := i.Current()
		if t == nil || i.Status().State != flow.StateAuthorized {
			return
		}
		info, _ := m.as.Inspect(t.Value().Reveal())
		if info.Ended || login != 0 && info.Login != login {
			return
		}
		login, token = info.Login, t.Value().Reveal()
	}
	m.held, m.token = login, token
}
