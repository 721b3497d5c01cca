package flow

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestWhenTheWallClockHasJumped(t *testing.T) {
	last := time.Now()
	for name, tc := range map[string]struct {
		wall, passed time.Duration
		want         bool
	}{
		"both went on":         {time.Second, time.Second, false},
		"slewed, as by NTP":    {time.Second + 500*time.Microsecond, time.Second, false},
		"the machine slept":    {8 * time.Hour, time.Second, true},
		"put forward a little": {1600 * time.Millisecond, time.Second, true},
		"put back":             {-time.Hour, time.Second, true},
		"stands still":         {0, time.Second, true},
	} {
		if got := jumpedSince(last, last.Round(0).Add(tc.wall), tc.passed); got != tc.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

// Who has nothing to do but keep a token sleeps until the next thing is due, and
// that by the wall clock, too.
func TestASleepingSessionHearsThatTheClockHasJumped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := owned(t)
		kin := s.client.Load().kin
		kin.clock.running = 100_000 // so that it has no need to look into the store
		s.adopt(&grant{access: NewSecret("access"), refresh: NewSecret("refresh"), lifetime: time.Hour})
		s.useAdopted()
		s.save.dirty, s.save.looked = false, time.Now()
		if !s.quiet() || s.untilDue(time.Now()) < 10*time.Minute {
			t.Fatalf("due in %v: it does not sleep", s.untilDue(time.Now()))
		}
		jumped := kin.clock.jumped()
		s.skew = 59 * time.Minute
		kin.clock.tell()
		select {
		case <-jumped:
		default:
			t.Fatal("nobody was told")
		}
		select {
		case <-kin.clock.jumped():
			t.Fatal("told of a jump that is to come")
		default:
		}
		if d := s.untilDue(time.Now()); d > 0 {
			t.Fatalf("the refresh is due in %v", d)
		}
	})
}

func TestTheClockIsWatchedWhileSessionsRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c clock
		first, second := c.join(), c.join()
		if c.sessions() != 2 {
			t.Errorf("%d sessions", c.sessions())
		}
		first()
		second()
		synctest.Wait()
		third := c.join() // and again
		stop, ended := c.stop, c.ended
		third()
		<-stop
		select {
		case <-ended:
		default:
			t.Error("the watch goes on when the last session has ended")
		}
		if c.sessions() != 0 {
			t.Errorf("%d sessions", c.sessions())
		}
	}) // a watch that goes on is a deadlock here
}

func TestAClockJumpWakesTheOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Config{Endpoints: Endpoints{DeviceAuthorization: "https://as.example/device", Token: "https://as.example/token"}, ClientID: "c"})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go s.Run(ctx)
		defer func() { cancel(); <-s.Done() }()
		synctest.Wait()
		c := &s.client.Load().kin.clock
		before := c.jumped()
		c.tell()
		synctest.Wait()
		c.mu.Lock()
		listens := c.jump != nil
		c.mu.Unlock()
		<-before
		if !listens {
			t.Error("the owner sleeps on, or will miss the next jump")
		}
	})
}
