package flow

import (
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// defaultCacheSize is that of Config.CacheSize.
const defaultCacheSize = 128

// slot is the access token for one [Want], and what is known of it. Readers use
// view and used, the rest is the owner's.
type slot struct {
	want Want
	key  string
	view atomic.Pointer[slotView]
	used atomic.Bool // somebody has taken the token since the owner looked

	token   *Token
	doubted *Token // lapsed by the wall clock only
	wanted  bool   // used since the last exchange, as far as the owner has looked
	had     bool   // there has been a token
	gone    bool   // out of the cache: nothing is kept here any more

	turn     uint64    // its place in the queue, 0: none
	next     time.Time // when to renew the token; without one, not to ask before
	nextWall time.Time // the same by the wall clock
	held     bool      // next has not come
	failures int
	forced   time.Time // when a 401 last asked for an exchange
	err      *StatusError
}

// slotView is what callers see of a slot. It is immutable.
type slotView struct {
	token   *Token
	err     *StatusError
	waiting bool          // an exchange is under way or in the queue
	held    bool          // there will be none for a while, because of err
	changed chan struct{} // closed when a newer view is out
}

// idle is the view of what has never been used.
var idle = new(slotView)

func (sl *slot) publish() {
	old := sl.view.Swap(&slotView{sl.token, sl.err, sl.turn != 0, sl.held, make(chan struct{})})
	if old != nil {
		close(old.changed)
	}
}

// notice takes over what readers have said by used.
func (sl *slot) notice() bool {
	if sl.used.Load() {
		sl.used.Store(false)
		sl.wanted = true
		return true
	}
	return false
}

// derivedState is the owner's memory of tokens for other APIs. Readers find
// theirs by a handle, or in Session.handles, and never come here: the cache only
// bounds how many there are.
type derivedState struct {
	cache *simplelru.LRU[string, *slot]
	turns uint64
	// failures in a row that no API is to blame for, and the pause that follows.
	failures int
	pause    time.Time
	err      *StatusError
	// strangers is when to ask for what has never been granted yet: keys that
	// come from requests can be many, and all wrong.
	strangers time.Time
}

func newDerivedState(size int) derivedState {
	cache, err := simplelru.NewLRU[string, *slot](size, nil)
	if err != nil {
		panic(err) // Validate has seen to the size
	}
	return derivedState{cache: cache}
}

// each calls f for all slots, in any order. Handles are those of the cache.
func (s *Session) each(f func(*slot)) {
	s.handles.Range(func(_, d any) bool {
		f(d.(*Derived).slot.Load())
		return true
	})
}

// slotFor is the slot of a handle, nil if there is no room for another: all have
// somebody waiting.
func (s *Session) slotFor(d *Derived) *slot {
	sl, ok := s.derived.cache.Get(d.key)
	if !ok {
		if s.derived.cache.Len() >= s.client.Load().CacheSize && (s.crowded() || !s.evict()) {
			return nil
		}
		sl = &slot{want: d.want, key: d.key}
		sl.publish()
		d.slot.Store(sl) // before others can find d
		s.derived.cache.Add(d.key, sl)
		s.handles.Store(d.key, d)
	}
	d.slot.Store(sl)
	return sl
}

// crowded reports whether half of the cache waits for a first token: what has
// one shall not have to make room for all that might never get any.
func (s *Session) crowded() bool {
	n := 0
	s.each(func(sl *slot) {
		if sl.turn != 0 && !sl.had {
			n++
		}
	})
	return n > s.derived.cache.Len()/2
}

// evict makes room by giving up the slot that was not used for longest, one
// without a token before others. Reading leaves the order of the cache alone, so
// the flags of the readers tell first.
func (s *Session) evict() bool {
	cache := s.derived.cache
	for pass := range 3 {
		for _, key := range cache.Keys() { // the oldest first
			sl, _ := cache.Peek(key)
			switch {
			case sl.turn != 0: // somebody waits for it
			case pass == 0 && sl.token != nil:
			case sl.notice(): // in the last pass all flags are down
				cache.Get(key) // that makes it the newest
			default:
				s.dropSlot(sl)
				return true
			}
		}
	}
	return false
}

// dropSlot forgets a token. Handles begin anew when they are used again.
func (s *Session) dropSlot(sl *slot) {
	s.derived.cache.Remove(sl.key)
	s.handles.Delete(sl.key)
	sl.token, sl.doubted, sl.err, sl.turn, sl.held, sl.gone = nil, nil, nil, 0, false, true
	sl.publish()
}

// dropDerived forgets all tokens for other APIs: they belong to a login that is
// no longer the one.
func (s *Session) dropDerived() {
	s.each(s.dropSlot)
	s.derived.failures, s.derived.pause, s.derived.strangers = 0, time.Time{}, time.Time{}
}

// resize follows Config.CacheSize.
func (s *Session) resize() {
	size := s.client.Load().CacheSize
	for s.derived.cache.Len() > size && s.evict() {
	}
	s.derived.cache.Resize(max(size, s.derived.cache.Len()))
}
