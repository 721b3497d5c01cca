package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// crashes counts what became of the login after each kill.
type crashes struct{ worked, lost, leftovers atomic.Int64 }

// TestKillAroundARefreshLosesNoLogin kills Caddy, as a power cut does, at random moments around its refreshes. After
// the next start it serves with the same login. Only a kill between the authorization server's answer and our save
// may cost the login, for the new refresh token went with it: then one clean login_required says so.
func TestKillAroundARefreshLosesNoLogin(t *testing.T) {
	parallel(t)
	const lanes = 4
	kills := sample(8, 200)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var sum crashes
	t.Run("lanes", func(t *testing.T) {
		for lane := range lanes {
			t.Run(fmt.Sprint(lane), func(t *testing.T) {
				t.Parallel()
				crashLane(t, lane, rand.New(rand.NewPCG(seed, uint64(lane))), kills/lanes, &sum)
			})
		}
	})
	t.Logf("%d kills: %d times the login went on, %d times it was lost between answer and save; %d files of killed writes",
		kills, sum.worked.Load(), sum.lost.Load(), sum.leftovers.Load())
	if sum.worked.Load() == 0 {
		t.Error("no kill left the login alone")
	}
}

// crashLane is one Caddy that is killed again and again.
func crashLane(t *testing.T, lane int, random *rand.Rand, kills int, sum *crashes) {
	const lifetime = 2 * time.Second
	// Not startAS: after a loss, the next start presents the token that was rotated out, and the server objects.
	as := flowtest.New(flowtest.Config{ClientID: "device", Interval: time.Second, AccessTokenLifetime: lifetime})
	listener := httptest.NewServer(as)
	as.SetConfig(func(c *flowtest.Config) { c.Issuer = listener.URL })
	t.Cleanup(func() { as.Close(); listener.Close() })
	issued := watchIssued(as)
	a := startAPI(t, as.ValidToken)
	c := startCaddy(t, site("device", "offline_access"), as.Issuer(), a.URL)
	_ = c.callForCode(t)
	as.ApproveAll()
	c.login(t)

	logins, lost := 1, 0
	unfinished := map[string]bool{}
	for n := range kills {
		var moment string
		switch (lane + n) % 4 {
		case 0: // the request is with the server
			moment = "before the answer"
			as.Script(flowtest.Refresh, flowtest.Response{Delay: time.Second, Pass: true, Edit: issued.note})
			seen := as.Count(flowtest.Refresh)
			every(t, time.Millisecond, 5*lifetime, "a refresh is under way", func() bool { return as.Count(flowtest.Refresh) > seen })
			<-time.After(time.Duration(random.IntN(50)) * time.Millisecond)
		case 1: // anywhere
			pause := time.Duration(random.Int64N(int64(lifetime)))
			moment = fmt.Sprintf("%v after the start", pause)
			<-time.After(pause)
		case 2: // while the answer arrives and is saved
			issued.await(t, 5*lifetime)
			pause := time.Duration(random.IntN(8000)) * time.Microsecond
			moment = fmt.Sprintf("%v after the answer", pause)
			<-time.After(pause)
		case 3: // when it must be saved, and before the next
			issued.await(t, 5*lifetime)
			pause := time.Duration(600+random.IntN(300)) * time.Millisecond
			moment = fmt.Sprintf("%v after the answer", pause)
			<-time.After(pause)
		}
		age := time.Since(issued.when())
		c.kill(t)
		saved, leftovers := recordAndLeftovers(t, recordsOf(c))
		for _, path := range leftovers {
			if !unfinished[path] {
				unfinished[path] = true
				sum.leftovers.Add(1)
			}
		}
		isLost := saved != issued.latest()
		if isLost && age > 500*time.Millisecond {
			t.Fatalf("kill %d, %s: the newest refresh token was %v old and not on disk", n, moment, age)
		}
		codes := as.Stats().DeviceRequests

		c.start(t)
		every(t, 100*time.Millisecond, patience, "after a kill "+moment+", calls are served or a login is asked for", func() bool {
			res := get(t, client(t), c.url+"/", "application/json")
			// A token that has not lapsed is good for a moment even if no other can follow.
			return res.status == 200 && !isLost || strings.Contains(res.body, `"user_code"`)
		})
		switch asked := as.Stats().DeviceRequests > codes; {
		case !asked:
			sum.worked.Add(1)
		case !isLost:
			t.Fatalf("kill %d, %s: the newest refresh token was saved, and yet the login is lost", n, moment)
		default:
			sum.lost.Add(1)
			lost++
			logins++
			t.Logf("kill %d, %s: the login is lost", n, moment)
			as.ApproveAll()
			c.login(t)
		}
		if got := as.Stats(); got.Logins != logins || got.DeviceRequests != logins || got.Reuses != lost || len(got.Violations) != lost {
			t.Fatalf("kill %d, %s: %d logins with %d codes, %d reuses, want %d, %d, %d; the server objects: %q",
				n, moment, got.Logins, got.DeviceRequests, got.Reuses, logins, logins, lost, got.Violations)
		}
	}
}

// issued keeps the refresh token that a server issued last.
type issued struct {
	token atomic.Value
	at    atomic.Value  // time.Time
	news  chan struct{} // of a token that was issued since the last look
}

// watchIssued takes note of each refresh token that the server issues, before its answer leaves.
func watchIssued(as *flowtest.Server) *issued {
	i := &issued{news: make(chan struct{}, 1)}
	as.ScriptAlways(flowtest.Token, flowtest.Response{Pass: true, Edit: i.note})
	return i
}

// note is an Edit that changes nothing.
func (i *issued) note(body []byte) []byte {
	var token tokenResponse
	if json.Unmarshal(body, &token) == nil && token.RefreshToken != "" {
		i.at.Store(time.Now())
		i.token.Store(token.RefreshToken)
		select {
		case i.news <- struct{}{}:
		default:
		}
	}
	return body
}

// await waits for the next one.
func (i *issued) await(t *testing.T, limit time.Duration) {
	t.Helper()
	select {
	case <-i.news: // of one before
	default:
	}
	select {
	case <-i.news:
	case <-time.After(limit):
		t.Fatal("no refresh token was issued")
	}
}

// when is the time of its issue.
func (i *issued) when() time.Time {
	at, _ := i.at.Load().(time.Time)
	return at
}

func (i *issued) latest() string {
	token, _ := i.token.Load().(string)
	return token
}

// recordAndLeftovers reads the refresh token of the one login stored below a folder, and lists the unfinished files.
func recordAndLeftovers(t *testing.T, folder string) (refresh string, leftovers []string) {
	t.Helper()
	for path, text := range filesBelow(t, folder) {
		if name := filepath.Base(path); killedWrite(name) {
			leftovers = append(leftovers, path)
			continue
		} else if filepath.Ext(name) != ".json" || filepath.Base(filepath.Dir(path)) != "device_flow" {
			continue // Caddy's own
		}
		var record struct {
			Refresh string `json:"refresh_token"`
		}
		if err := json.Unmarshal([]byte(text), &record); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if refresh != "" {
			t.Errorf("there is a second record: %s", path)
		}
		refresh = record.Refresh
	}
	return refresh, leftovers
}

// killedWrite says whether Caddy's file storage gives such names to the files it has not finished: digits alone.
func killedWrite(name string) bool { return strings.Trim(name, "0123456789") == "" }

// TestFilesOfKilledWritesAreCleanedUp starts Caddy where an earlier one was killed in the middle of a save: what it
// left holds secrets, has a name that nothing would ever overwrite, and goes away.
func TestFilesOfKilledWritesAreCleanedUp(t *testing.T) {
	parallel(t)
	_, _, c := startProxy(t, time.Hour)
	c.kill(t)
	before := filesBelow(t, recordsOf(c))
	var folder, text string
	for path, content := range before {
		folder, text = filepath.Dir(path), content
	}
	// A write of another instance may be under way just now; an old file belongs to nobody.
	old := time.Now().Add(-time.Hour)
	for name, content := range map[string]string{"1234567890": text, "987654321": text[:len(text)/2], "55": ""} {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	// What starts Caddy again does so at once, as a rule, and then not for months.
	young := filepath.Join(folder, "1122334455")
	if long {
		if err := os.WriteFile(young, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c.start(t)
	c.login(t)
	eventually(t, patience, "the files of killed writes are gone", func() bool {
		_, leftovers := recordAndLeftovers(t, recordsOf(c))
		return len(leftovers) == 0 || len(leftovers) == 1 && leftovers[0] == young
	})
	if long {
		every(t, time.Second, 150*time.Second, "the young one is gone, too", func() bool {
			_, err := os.Stat(young)
			return os.IsNotExist(err)
		})
	}
	for path := range before {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("the clean-up has taken more: %v", err)
		}
	}
}
