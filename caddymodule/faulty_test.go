package caddymodule

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/certmagic"
)

// faultyStorage is a Caddy storage in memory. All of one name are the same one, in whatever configuration.
type faultyStorage struct {
	Name string `json:"name"`
}

// faults is what a storage does wrong. Its functions may take their time, whatever the caller's context says.
type faults struct {
	load, store, lock, unlock func() error
	stale                     bool // Load returns what was there before the last Store
	noLock                    bool // Lock does nothing and says that it did
	orphaned                  bool // every lock is held by somebody who has died
}

// disk is what a storage holds, and what is wrong with it.
type disk struct {
	mu            sync.Mutex
	now, before   map[string][]byte
	locks         map[string]chan struct{}
	faults        faults
	healed        chan struct{} // ends what hangs
	loads, stores int
}

// disks are the storages of the tests, by name.
var disks sync.Map

func init() { caddy.RegisterModule(faultyStorage{}) }

func (faultyStorage) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.storage.device_flow_faulty", New: func() caddy.Module { return new(faultyStorage) }}
}

func (s *faultyStorage) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	return oneArg(d, &s.Name)
}

func (s faultyStorage) CertMagicStorage() (certmagic.Storage, error) {
	d, ok := disks.Load(s.Name)
	if !ok {
		return nil, errors.New("no test has made a disk of that name")
	}
	return d.(*disk), nil
}

// newDisk makes a storage, which is device_flow_faulty with the name of the test. Cleanups run backwards: make it
// before the rig, and it is faulty still while Caddy stops.
func newDisk(t *testing.T) *disk {
	d := &disk{now: map[string][]byte{}, before: map[string][]byte{}, locks: map[string]chan struct{}{}, healed: make(chan struct{})}
	disks.Store(t.Name(), d)
	t.Cleanup(func() {
		d.heal()
		disks.Delete(t.Name())
	})
	return d
}

// breaks makes the disk faulty, in this way only.
func (d *disk) breaks(f faults) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.faults = f
}

// heal makes everything work and lets go what hangs.
func (d *disk) heal() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.faults = faults{}
	close(d.healed)
	d.healed = make(chan struct{})
}

// hang is a fault: a minute without an answer, deaf to any context, and then an error.
func (d *disk) hang() error {
	d.mu.Lock()
	healed := d.healed
	d.mu.Unlock()
	t := time.NewTimer(time.Minute)
	defer t.Stop()
	select {
	case <-healed:
	case <-t.C:
	}
	return errors.New("it was hanging")
}

// failing is a fault: that error, at once.
func failing(err error) func() error { return func() error { return err } }

// enter counts a call and suffers what is wrong with it.
func (d *disk) enter(count *int, which func(*faults) func() error) error {
	d.mu.Lock()
	if count != nil {
		*count++
	}
	f := which(&d.faults)
	d.mu.Unlock()
	if f == nil {
		return nil
	}
	return f()
}

func (d *disk) Load(_ context.Context, key string) ([]byte, error) {
	if err := d.enter(&d.loads, func(f *faults) func() error { return f.load }); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	from := d.now
	if d.faults.stale {
		from = d.before
	}
	v, ok := from[key]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return slices.Clone(v), nil
}

func (d *disk) Store(_ context.Context, key string, value []byte) error {
	if err := d.enter(&d.stores, func(f *faults) func() error { return f.store }); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if v, ok := d.now[key]; ok {
		d.before[key] = v
	}
	d.now[key] = slices.Clone(value)
	return nil
}

func (d *disk) Lock(ctx context.Context, name string) error {
	if err := d.enter(nil, func(f *faults) func() error { return f.lock }); err != nil {
		return err
	}
	for {
		d.mu.Lock()
		if d.faults.noLock {
			d.mu.Unlock()
			return nil
		}
		freed, taken := d.locks[name]
		if d.faults.orphaned {
			freed, taken = d.healed, true
		}
		if !taken {
			d.locks[name] = make(chan struct{})
			d.mu.Unlock()
			return nil
		}
		d.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (d *disk) Unlock(_ context.Context, name string) error {
	if err := d.enter(nil, func(f *faults) func() error { return f.unlock }); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if c, ok := d.locks[name]; ok {
		delete(d.locks, name)
		close(c)
	}
	return nil
}

func (d *disk) Delete(_ context.Context, key string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.now, key)
	return nil
}

func (d *disk) Exists(_ context.Context, key string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.now[key]
	return ok
}

func (d *disk) List(_ context.Context, path string, _ bool) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var keys []string
	for _, key := range slices.Sorted(maps.Keys(d.now)) {
		if strings.HasPrefix(key, path+"/") {
			keys = append(keys, key)
		}
	}
	return keys, nil
}

func (d *disk) Stat(_ context.Context, key string) (certmagic.KeyInfo, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v, ok := d.now[key]
	if !ok {
		return certmagic.KeyInfo{}, fs.ErrNotExist
	}
	return certmagic.KeyInfo{Key: key, Size: int64(len(v)), IsTerminal: true}, nil
}

// holds reports whether the stored login is in want.
func (d *disk) holds(want string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for key, v := range d.now {
		if strings.HasPrefix(key, storageFolder+"/") && strings.HasSuffix(key, ".json") && strings.Contains(string(v), want) {
			return true
		}
	}
	return false
}

// traffic is calls that go on until they are stopped.
type traffic struct {
	stop chan struct{}
	wg   sync.WaitGroup

	mu      sync.Mutex
	calls   int
	failed  []string
	longest time.Duration
}

// drive calls url about a hundred times a second, four calls at a time at most.
func (x *rig) drive(url string) *traffic {
	tr := &traffic{stop: make(chan struct{})}
	for range 4 {
		tr.wg.Go(func() {
			tick := time.NewTicker(40 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-tr.stop:
					return
				case <-tick.C:
				}
				began := time.Now()
				failure := x.tryGet(url)
				took := time.Since(began)
				tr.mu.Lock()
				tr.calls++
				tr.longest = max(tr.longest, took)
				if failure != "" {
					tr.failed = append(tr.failed, failure)
				}
				tr.mu.Unlock()
			}
		})
	}
	x.t.Cleanup(func() { tr.end() })
	return tr
}

// tryGet says what is wrong with the answer, "" for nothing.
func (x *rig) tryGet(url string) string {
	resp, err := x.client.Get(url)
	for n := 0; n < 3 && errors.Is(err, io.EOF); n++ { // as in get
		resp, err = x.client.Get(url)
	}
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	if resp.StatusCode != http.StatusOK {
		return resp.Status + " " + string(body)
	}
	return ""
}

// failing reports whether any call has failed.
func (tr *traffic) failing() bool {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return len(tr.failed) > 0
}

func (tr *traffic) end() {
	tr.mu.Lock()
	select {
	case <-tr.stop:
	default:
		close(tr.stop)
	}
	tr.mu.Unlock()
	tr.wg.Wait()
}

// check stops the traffic and complains about every call that failed.
func (tr *traffic) check(t *testing.T) {
	t.Helper()
	tr.end()
	t.Logf("%d calls, the longest took %v", tr.calls, tr.longest.Round(time.Millisecond))
	if n := len(tr.failed); n > 0 {
		t.Errorf("%d of %d calls failed, the first with %s", n, tr.calls, tr.failed[0])
	}
	if tr.calls == 0 {
		t.Error("there were no calls")
	}
}

// until waits for a condition that nothing signals.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// refreshes waits until n more refreshes have been done, or calls fail.
func (x *rig) refreshes(n int, tr *traffic) {
	x.t.Helper()
	want := x.as.Stats().Refreshes + n
	until(x.t, "refreshes", func() bool { return tr.failing() || x.as.Stats().Refreshes >= want })
}
