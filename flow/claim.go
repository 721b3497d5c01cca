package flow

import (
	"context"
	"time"
)

// claim says which instance is about to trade the refresh token. It proves to be
// alive by counting beat up for as long as the server takes to answer. Locks
// tell the same, but not every store has locks that work, and nobody can wait
// for one as long as a slow server may take.
type claim struct {
	by   string // an instance, "" for none
	beat uint64
}

// claimBeat is how often a holder counts up. Three beats missed, and it is gone.
func (s *Session) claimBeat() time.Duration {
	return claimBeat(s.rec.lifetime())
}

func claimBeat(lifetime time.Duration) time.Duration {
	if lifetime <= 0 {
		return time.Second
	}
	return min(time.Second, max(lifetime/10, lookAtLeast))
}

// turn reads the store until no other instance is trading the refresh token of
// that generation. It returns the record if one has done so, else the claim of
// one that is gone, if there is such a thing.
func (c *client) turn(ctx context.Context, id string, generation uint64, look time.Duration) (b []byte, r *record, gone claim) {
	var heard time.Time
	for {
		lookCtx, cancel := context.WithTimeout(ctx, look)
		b, r, err := c.read(lookCtx)
		cancel()
		switch {
		case err != nil || r == nil || r.generation < generation:
			return nil, nil, gone
		case r.generation > generation:
			return b, r, gone
		case r.claim.by == "" || r.claim.by == id:
			return nil, nil, claim{}
		case r.claim != gone:
			gone, heard = r.claim, time.Now()
		case time.Since(heard) >= 3*claimBeat(r.lifetime()):
			return nil, nil, gone
		}
		sleep(ctx, lookAtLeast)
		if ctx.Err() != nil {
			return nil, nil, gone
		}
	}
}

// settling is how long a claim has to stand in the store at least. Locks may do
// nothing, and two that start at once, after a power cut say, write at once.
const settling = 20 * time.Millisecond

// claimRefresh stores that this instance is going to trade the refresh token,
// and then does so, unless another was faster to say the same.
func (s *Session) claimRefresh(gone claim) {
	s.refresh.gone = gone
	generation, access, sl, begun := s.rec.generation, s.rec.access, s.refresh.slot, time.Now()
	s.rec.claim = claim{by: s.id, beat: max(s.rec.claim.beat, gone.beat) + 1}
	s.changedThen(func() {
		switch {
		case !s.refresh.running: // a login or a logout came between
		case s.closing:
			s.letGo()
			s.save.dirty = true
			s.refresh.reply(ErrClosed)
		case s.rec.generation != generation:
			s.yield(access, nil, nil)
		case s.rec.claim.by != s.id:
			s.letGo()
			s.trade(sl)
		case s.leaves(sl, time.Now()): // as the store has told just now
			s.letGo()
			if sl != nil {
				sl.turn = 0
				sl.publish()
			}
		default:
			s.refresh.nextBeat = time.Now().Add(s.claimBeat())
			s.refresh.waited = s.save.running
			s.exchange(max(2*time.Since(begun), settling))
		}
	})
}

// letGo ends an attempt to refresh that leads to nothing.
func (s *Session) letGo() {
	s.refresh.running, s.refresh.trading, s.refresh.slot = false, false, nil
	if s.rec.claim.by == s.id {
		s.rec.claim = claim{}
	}
	if f := s.refresh.unlock; f != nil {
		s.refresh.unlock = nil
		s.giveBack(f)
	}
}

// stepClaim shows the other instances that the exchange is still under way.
func (s *Session) stepClaim(now time.Time) {
	if s.refresh.trading && !now.Before(s.refresh.nextBeat) {
		s.rec.claim.beat++
		s.refresh.nextBeat = now.Add(s.claimBeat())
		s.changed()
		s.writeClosing() // nobody shall think that it is gone already
	}
}

// mergeClaim takes over what another instance says, about the same generation.
func (s *Session) mergeClaim(theirs claim) {
	mine := s.rec.claim
	switch {
	case theirs == mine:
	case s.refresh.trading, mine.by == s.id && (theirs.by == "" || theirs.by == s.id || theirs == s.refresh.gone):
		s.save.dirty = true // a late writer does not know of ours
	default:
		s.rec.claim = theirs
	}
}

// claimed reports whether the store has another's claim by now, or its result.
func (c *client) claimed(ctx context.Context, generation uint64, id string) bool {
	ctx, cancel := context.WithTimeout(ctx, lookAtLeast)
	defer cancel()
	_, r, err := c.read(ctx)
	return err == nil && r != nil && (r.generation > generation || r.generation == generation && r.claim.by != "" && r.claim.by != id)
}
