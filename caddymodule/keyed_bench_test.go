package caddymodule

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// warm is a handler and so many requests, each of another device, which has its token;
// or it is the handler of one session for all.
func warm(tb testing.TB, as *flowtest.Server, n int, byKey bool) (*Handler, []*http.Request) {
	k := newKeyed(as, max(n, 1000))
	k.session.cfg.Store = everybody{k.session.cfg.Fingerprint(), time.Now()}
	if err := k.attach(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := k.detach(); err != nil {
			tb.Error(err)
		}
	})
	h := &Handler{session: k.session, guard: kept(tb, Guard{}), varKey: k.varKey, forKey: targetKey(k.session.name), Authenticate: true}
	if byKey {
		h.keyed = k
	} else {
		k.session.live.Store(call(tb, k, "none").running)
	}
	var requests []*http.Request
	for i := range n {
		r := plainCall()
		r.Header["X-Device-Id"] = []string{fmt.Sprint("device-", i)}
		requests = append(requests, r)
		if byKey {
			call(tb, k, fmt.Sprint("device-", i))
		}
	}
	return h, requests
}

// discard is a response that nobody reads.
type discard http.Header

func (d discard) Header() http.Header       { return http.Header(d) }
func (discard) Write(b []byte) (int, error) { return len(b), nil }
func (discard) WriteHeader(int)             {}

// What a request costs that finds its token in memory, with session_key and without:
// the same one each time, and a thousand in turn, which do not fit into the caches.
func BenchmarkKeyedRequest(b *testing.B) {
	as := flowtest.New(flowtest.Config{})
	defer as.Close()
	for _, c := range []struct {
		n     int
		byKey bool
	}{{1, false}, {1, true}, {1000, false}, {1000, true}, {100000, false}, {100000, true}} {
		b.Run(fmt.Sprintf("requests=%d/byKey=%t", c.n, c.byKey), func(b *testing.B) {
			h, requests := warm(b, as, c.n, c.byKey)
			upstream := caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return nil })
			w := make(discard)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if err := h.ServeHTTP(w, requests[i%len(requests)], upstream); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestAKeyCostsNoAllocation(t *testing.T) {
	as := flowtest.New(flowtest.Config{})
	defer as.Close()
	allocations := func(byKey bool) float64 {
		h, requests := warm(t, as, 100, byKey)
		var got string
		upstream := caddyhttp.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error { got = r.Header["Authorization"][0]; return nil })
		w, i := make(discard), 0
		return testing.AllocsPerRun(1000, func() {
			r := requests[i%len(requests)]
			if err := h.ServeHTTP(w, r, upstream); err != nil || got == "" {
				t.Error(err)
			}
			i++
		})
	}
	without, with := allocations(false), allocations(true)
	t.Logf("%v allocations without a key, %v with one", without, with)
	if with > without {
		t.Errorf("a key costs %v allocations", with-without)
	}
}

// 10 000 keys come by, of which 1000 fit. Once it is full, memory must not grow with
// the number of keys: what the storage keeps is not counted.
func TestMemoryDoesNotGrowWithTheNumberOfKeys(t *testing.T) {
	const most, keys = 1000, 10000
	as := flowtest.New(flowtest.Config{})
	defer as.Close()
	k := newKeyed(as, most)
	k.session.cfg.Store = everybody{k.session.cfg.Fingerprint(), time.Now()}
	if err := k.attach(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := k.detach(); err != nil {
			t.Error(err)
		}
	}()
	heap := func() float64 {
		g := k.live.Load()
		for {
			g.mu.Lock()
			n := g.ending
			g.mu.Unlock()
			if n == 0 {
				break
			}
			runtime.Gosched()
		}
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc+m.StackInuse) / 1024
	}
	empty := heap()
	var full float64
	for i := range keys {
		m := call(t, k, fmt.Sprint("device-", i))
		if m.Current() == nil {
			t.Fatalf("device %d is %+v", i, m.Status())
		}
		if i+1 == 2*most {
			full = heap()
		}
	}
	end := heap()
	t.Logf("%.0f KiB empty, %.0f KiB with %d sessions (%.1f KiB each) after %d keys, %.0f KiB after %d",
		empty, full, most, (full-empty)/most, 2*most, end, keys)
	if end > full*1.15 {
		t.Errorf("memory has grown from %.0f to %.0f KiB", full, end)
	}
}

// 100 000 keys that nobody knows: they get no further than the storage, and those who
// are logged in stay where they are. The end of all sessions is quick.
func TestAHundredThousandUnknownKeys(t *testing.T) {
	const most, keys, known = 1000, 100000, 800
	ofGroup(t, flowtest.Config{}, most, func(t *testing.T, _ *flowtest.Server, k *keyed) {
		store := k.session.cfg.Store
		k.session.cfg.Store = everybody{k.session.cfg.Fingerprint(), time.Now()}
		for i := range known {
			call(t, k, fmt.Sprint("device-", i))
		}
		k.session.cfg.Store = store
		refused := 0
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		for i := range keys {
			r.Header["X-Device-Id"] = []string{fmt.Sprint("random-", i)}
			if _, err := k.running(r, nil, false); err != nil {
				refused++
			}
		}
		g := k.live.Load()
		g.mu.Lock()
		n, ending := len(g.ring), g.ending
		g.mu.Unlock()
		for i := range known {
			if _, ok := g.byKey.Load(fmt.Sprint("device-", i)); !ok {
				t.Errorf("device-%d had to go", i)
			}
		}
		if n != known+mostPending || ending != 0 || refused != keys-mostPending {
			t.Errorf("%d sessions, %d more on their way out, %d keys refused", n, ending, refused)
		}
		began := time.Now()
		if err := k.detach(); err != nil {
			t.Error(err)
		}
		if ended := time.Since(began); ended > time.Second {
			t.Errorf("the end took %v", ended)
		}
	})
}

// everybody is a storage in which each device is logged in.
type everybody struct {
	fingerprint string
	since       time.Time
}

func (e everybody) Load(_ context.Context, key string) ([]byte, error) {
	return json.Marshal(map[string]any{
		"version": 1, "fingerprint": e.fingerprint, "generation": 1, "access_token": "a." + key, "refresh_token": "r." + key,
		"obtained_at": e.since, "expires_at": e.since.Add(time.Hour), "refresh_at": e.since.Add(time.Hour), "login_at": e.since,
	})
}

func (everybody) Save(context.Context, string, []byte) error { return nil }
