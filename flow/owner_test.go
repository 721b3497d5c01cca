package flow

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// owned is a session in the hands of the test, with a server that never answers.
func owned(t *testing.T) *Session {
	t.Helper()
	s, err := New(Config{
		Endpoints: Endpoints{DeviceAuthorization: "https://as.example/device", Token: "https://as.example/token"},
		ClientID:  "c",
		HTTP: answers(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s.jobCtx, s.loaded = ctx, true
	t.Cleanup(func() {
		cancel()
		close(s.done)
		synctest.Wait()
	})
	return s
}

// TestNothingIsDueRightAfterAStep would otherwise mean an owner that spins, nor is
// anything due before an owner looks again that has nothing else to do. The
// states are random, with times on both sides of now, as clock steps make them.
func TestNothingIsDueRightAfterAStep(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	slept := 0
	for range 5000 {
		synctest.Test(t, func(t *testing.T) {
			s := owned(t)
			now := time.Now()
			calm := rnd.IntN(2) == 0 // there is a token, and nothing else but times
			if calm {
				s.client.Load().kin.clock.running = 100_000 // so that it need not look into the store
				s.save.looked = now
			}
			maybe := func() bool { return rnd.IntN(2) == 0 }
			busy := func() bool { return maybe() && !calm }
			moment := func() time.Time {
				at := now.Add(time.Duration(rnd.IntN(7)-3) * time.Hour / time.Duration(1+rnd.IntN(5000)))
				if maybe() {
					at = at.Round(0) // as from the store
				}
				return at
			}
			r := s.rec
			if maybe() {
				r.refresh = NewSecret("refresh")
			}
			if calm || maybe() {
				r.access = NewSecret("access")
				if maybe() {
					r.expiry = moment().Round(0)
				}
				if calm || maybe() {
					s.lapses = moment()
					s.token = newToken(r.access, r.expiry, s.lapses)
				}
			}
			if busy() {
				r.pending = &pendingLogin{code: NewSecret("code"), interval: time.Second, nextPoll: moment(), ends: moment(),
					info: LoginInfo{UserCode: "A", ExpiresAt: moment().Round(0)}}
			}
			s.loaded = r.worthSaving() || busy() // before, there is nothing
			s.save.unread, s.save.dirty, s.save.running = busy(), busy(), busy()
			s.save.began, s.save.next, s.save.patience = moment(), moment(), moment()
			if busy() {
				s.save.held, s.save.heldUntil = func() {}, moment()
			}
			s.refresh.next, s.refresh.nextWall, s.refresh.running = moment(), moment().Round(0), busy()
			s.login.asking, s.login.held, s.login.next = busy(), busy(), moment()
			if maybe() {
				s.login.polling = r.pending
			}
			s.demanded = busy()
			s.publish()
			s.step(now)
			if s.untilDue(now) <= 0 {
				s.step(now) // what the first step made due
			}
			d, quiet := s.untilDue(now), s.quiet()
			if d <= 0 || d > lookAgain && !quiet {
				t.Fatalf("due again in %v after a step: %+v, pending %+v, %+v, %+v", d, s.owner, r.pending, s.save, s.refresh)
			}
			if !quiet {
				return
			}
			slept++
			time.Sleep(d - 1)
			token := s.token
			if s.step(time.Now()) || s.jobs > 0 || s.token != token {
				t.Fatalf("%v later there was something to do: %+v, %+v, %+v", d-1, s.owner, s.save, s.refresh)
			}
		})
	}
	if slept < 100 {
		t.Errorf("%d of 5000 owners could sleep", slept)
	}
	t.Logf("%d of 5000 owners could sleep", slept)
}

// Wall clocks step, monotonic ones do not. To move what is remembered is to move
// the clock the other way.
func TestClockSteps(t *testing.T) {
	login := func(s *Session) {
		s.adopt(&grant{access: NewSecret("access"), refresh: NewSecret("refresh"), lifetime: time.Hour})
		s.useAdopted()
	}
	t.Run("an hour forward, as after a sleep", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := owned(t)
			login(s)
			s.skew = 55 * time.Minute
			s.step(time.Now())
			if s.token == nil || !s.refresh.running {
				t.Fatal("no refresh, or no token meanwhile")
			}
			s.refresh.running = false
			s.skew = 65 * time.Minute
			s.step(time.Now())
			if v := s.view.Load(); v.token != nil || !v.waiting || !s.refresh.running {
				t.Fatal("a lapsed token is in use, or nobody knows of the refresh")
			}
		})
	})
	t.Run("a token that only the wall clock speaks against is used if there is no other", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := owned(t)
			login(s)
			s.skew = 50 * 365 * 24 * time.Hour
			s.step(time.Now())
			if s.token != nil || !s.refresh.running {
				t.Fatal("the clock was not heeded")
			}
			s.refreshed(nil, &Error{Kind: KindTemporary, Op: opRefresh, Code: CodeUnreachable}, 0)
			if s.token == nil {
				t.Fatal("the token was given up though it may be good")
			}
			time.Sleep(time.Hour)
			s.step(time.Now())
			if s.token != nil {
				t.Fatal("a lapsed token is in use")
			}
		})
	})
	t.Run("back by an hour", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := owned(t)
			login(s)
			s.skew = -time.Hour
			s.step(time.Now())
			if s.token == nil || s.refresh.running {
				t.Fatal("the token was given up, or refreshed early")
			}
			time.Sleep(52 * time.Minute)
			s.step(time.Now())
			if s.token == nil || !s.refresh.running {
				t.Fatal("the refresh was put off with the clock")
			}
		})
	})
	t.Run("a code ends in its own time", func(t *testing.T) {
		for _, skew := range []time.Duration{-time.Hour, time.Hour} {
			synctest.Test(t, func(t *testing.T) {
				s := owned(t)
				s.codeReceived(&deviceCode{code: NewSecret("x"), interval: time.Second, login: LoginInfo{
					UserCode: "A", ExpiresAt: time.Now().Round(0).Add(time.Minute)}}, nil)
				s.skew = skew
				s.save.held = nil // as if it had been saved
				s.rec.pending.nextPoll = time.Now().Add(time.Hour)
				s.rec.pending.nextBeat = s.rec.pending.nextPoll
				s.stepPending(time.Now())
				if s.rec.pending == nil {
					t.Fatal("the clock was put right, and a code that somebody types in was lost")
				}
				time.Sleep(time.Minute)
				if d := s.untilDue(time.Now()); d > 0 {
					t.Fatal("nobody looks at its end")
				}
				s.stepPending(time.Now())
				if s.rec.pending != nil {
					t.Fatal("it has no end")
				}
				if d := s.untilDue(time.Now()); d <= 0 {
					t.Fatal("the owner spins")
				}
			})
		}
	})
}

func TestBackoffGrowsToItsCapAndVaries(t *testing.T) {
	seen := map[time.Duration]bool{}
	for range 100 {
		for n, want := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second, 6: 30 * time.Second, 1000000: 30 * time.Second} {
			d := backoff(n, time.Second, 30*time.Second)
			if d > want || d < want*9/10 {
				t.Fatalf("backoff %d is %v, want about %v", n, d, want)
			}
			seen[d] = true
		}
	}
	if len(seen) < 100 {
		t.Errorf("%d different pauses of 500: instances would stay in step", len(seen))
	}
}

func TestDiscoveryErrorThatHelpsMost(t *testing.T) {
	e := func(kind Kind, status int) *Error { return &Error{Kind: kind, Status: status, Err: errors.New("x")} }
	wrong, outage, forbidden, absent := e(KindConfiguration, 200), e(KindTemporary, 503), e(KindDoubtful, 403), e(KindDoubtful, 404)
	for _, tc := range []struct {
		problems []*Error
		want     *Error // nil: the one for nothing there
	}{
		{[]*Error{absent, wrong}, wrong},
		{[]*Error{outage, wrong}, wrong},
		{[]*Error{absent, outage}, outage},
		{[]*Error{forbidden, outage}, outage},
		{[]*Error{absent, forbidden}, forbidden},
		{[]*Error{absent, absent}, nil},
	} {
		got := asError("", discoveryError(tc.problems))
		if tc.want != nil && got != tc.want || tc.want == nil && (got.Kind != KindConfiguration || got.Description == "") {
			t.Errorf("%+v: got %+v", tc.problems, got)
		}
	}
}
