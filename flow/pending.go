package flow

import (
	"slices"
	"strings"
	"time"
)

// stepPending does what is due for the code that is out.
func (s *Session) stepPending(now time.Time) {
	p := s.rec.pending
	if p == nil {
		return
	}
	if s.login.polling != nil {
		if p.poller == s.id && !now.Before(p.nextBeat) {
			s.beat(p, now) // an answer may take long, and nobody else shall ask meanwhile
		}
		return
	}
	switch {
	case !now.Before(p.ends):
		// RFC 8628 §3.5: some servers say pending for ever.
		s.loginFailed(&Error{Kind: KindExpired, Op: opPoll, Code: "expired_token"})
	case p.poller != s.id:
		if p.poller == "" || now.Sub(p.heard) > p.patience() {
			p.poller, p.nextPoll = s.id, now.Add(p.interval)
			s.beat(p, now)
		}
	case !now.Before(p.nextPoll):
		s.startPoll()
	case !now.Before(p.nextBeat):
		s.beat(p, now)
	}
}

// beat shows the other instances that this one polls.
func (s *Session) beat(p *pendingLogin, now time.Time) {
	p.beat++
	p.heard, p.nextBeat = now, now.Add(max(p.interval, time.Second))
	s.changed()
}

// leavePending lets another instance, or the next life of this one, go on with
// the code at once.
func (s *Session) leavePending() {
	if p := s.rec.pending; p != nil && p.poller == s.id && s.lastTries == 0 {
		p.poller = ""
		p.beat++
		s.save.dirty = true
	}
}

// mergePending takes over what r says about the code that is out.
func (s *Session) mergePending(r *record, live bool) {
	now, mine, theirs := time.Now(), s.rec.pending, r.pending
	if theirs != nil && (mine == nil || !mine.code.Equal(theirs.code)) {
		// By our own clock, as far as it can be told: clocks may be minutes apart.
		left := theirs.left
		if !live {
			left = min(left, theirs.info.ExpiresAt.Sub(s.wall(now)))
		}
		theirs.ends, theirs.info.ExpiresAt = now.Add(left), s.wall(now).Add(left)
		if left <= 0 {
			theirs = nil
		}
	}
	switch {
	case theirs == nil && mine == nil:
		s.adoptFailure(r)
	case theirs == nil && r.ended.has(mine):
		s.rec.endPending()
		s.login.ended = s.rec.ended
		s.adoptFailure(r)
	case theirs == nil:
		s.save.dirty = true // a late writer does not know of it
	case s.login.ended.has(theirs):
		s.rec.ended = s.login.ended
		s.save.dirty = true // a late writer has brought it back
	case mine == nil || !mine.code.Equal(theirs.code):
		theirs.nextPoll = now.Add(theirs.interval)
		theirs.heard = now
		s.rec.pending = theirs
		s.login.err, s.login.held = nil, false
		s.rec.failed, s.rec.held = nil, false
		if s.loaded {
			s.publish()
			s.observe(Event{Kind: EventLoginPending})
		}
	default:
		mine.interval = max(mine.interval, theirs.interval)
		// Of two that took over at once, the one whose claim is stored polls.
		if theirs.beat > mine.beat || theirs.beat == mine.beat && theirs.poller != mine.poller {
			mine.beat, mine.poller, mine.heard = theirs.beat, theirs.poller, now
		}
	}
}

// adoptFailure shows why a login ended that another instance, or an earlier
// life of this one, had polled for.
func (s *Session) adoptFailure(r *record) {
	s.rec.failed, s.rec.held = r.failed, r.held
	s.login.err, s.login.held = r.failed, r.held
}

// endedCodes are digests of the codes that ended last, however they did, with
// spaces between them and the latest at the end. A late writer may bring one back,
// and who has not looked for a while may still hold one that others have replaced.
type endedCodes string

// maxEnded is more codes than can end between two looks into the store.
const maxEnded = 8

func (e endedCodes) has(p *pendingLogin) bool {
	return slices.Contains(strings.Fields(string(e)), p.digest())
}

// with adds the code of p.
func (e endedCodes) with(p *pendingLogin) endedCodes {
	all := strings.Fields(string(e))
	if d := p.digest(); !slices.Contains(all, d) {
		all = append(all, d)
	}
	return endedCodes(strings.Join(all[max(0, len(all)-maxEnded):], " "))
}
