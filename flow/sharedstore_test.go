package flow_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// mode is what a part of a sharedStore does.
type mode string

const (
	works    mode = "works"
	fails    mode = "fails"
	hangs    mode = "hangs"        // until it heals, whatever the context says
	nothing  mode = "does nothing" // and says that it did
	orphaned mode = "is orphaned"  // locks: somebody has died with it
)

// sharedStore is a store with locks, for several instances, and with the faults
// of real ones.
type sharedStore struct {
	locks flow.MemoryStore

	mu               sync.Mutex
	past             map[string][]version // newest last
	load, save, lock mode
	behind           time.Duration // of what Load returns
	healed           chan struct{}
}

type version struct {
	at    time.Time
	value []byte // nil: none
}

func newSharedStore() *sharedStore {
	return &sharedStore{past: map[string][]version{}, load: works, save: works, lock: works, healed: make(chan struct{})}
}

// heal makes everything work.
func (s *sharedStore) heal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.load, s.save, s.lock, s.behind = works, works, works, 0
	close(s.healed)
	s.healed = make(chan struct{})
}

func (s *sharedStore) set(f func(s *sharedStore)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s)
}

// act does what m says and reports whether there is anything left to do.
func (s *sharedStore) act(m mode, healed <-chan struct{}) (bool, error) {
	switch m {
	case fails:
		return false, syscall.ENOSPC
	case hangs:
		<-healed
		return false, errors.New("it was hanging")
	}
	return m == works, nil
}

func (s *sharedStore) Load(_ context.Context, key string) ([]byte, error) {
	s.mu.Lock()
	m, healed := s.load, s.healed
	s.mu.Unlock()
	if _, err := s.act(m, healed); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.past[key]
	for i, v := range slices.Backward(all) {
		if i > 0 && time.Since(v.at) < s.behind {
			continue
		}
		if v.value != nil {
			return slices.Clone(v.value), nil
		}
		break
	}
	return nil, flow.ErrNotFound
}

func (s *sharedStore) Save(_ context.Context, key string, value []byte) error {
	s.mu.Lock()
	m, healed := s.save, s.healed
	s.mu.Unlock()
	if ok, err := s.act(m, healed); !ok {
		return err
	}
	s.put(key, slices.Clone(value))
	return nil
}

func (s *sharedStore) put(key string, value []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := append(s.past[key], version{time.Now(), value})
	s.past[key] = all[max(0, len(all)-50):]
}

// only is the key and value of the one record.
func (s *sharedStore) only() (key string, value []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, all := range s.past {
		if strings.HasSuffix(k, ".json") && len(all) > 0 {
			return k, all[len(all)-1].value
		}
	}
	return "", nil
}

func (s *sharedStore) Lock(ctx context.Context, name string) (func(), error) {
	s.mu.Lock()
	m, healed := s.lock, s.healed
	s.mu.Unlock()
	switch m {
	case nothing:
		return func() {}, nil
	case orphaned:
		<-ctx.Done()
		return nil, ctx.Err()
	case works:
		return s.locks.Lock(ctx, name)
	}
	_, err := s.act(m, healed)
	return nil, err
}

// link is what one instance has of the world. When it is cut, the instance is
// as good as killed: nothing it does has an effect any more.
type link struct {
	*sharedStore
	http http.RoundTripper
	life context.Context
	cut  context.CancelFunc
	// orphan is how long its locks outlive it.
	orphan time.Duration

	mu      sync.Mutex
	rotated map[string]bool // refresh tokens that it has had answers for
	resent  int             // of these, sent again
}

// refreshToken notes the refresh token that a request carries.
func (l *link) refreshToken(req *http.Request) string {
	if req.Body == nil || req.Header.Get("Content-Type") != "application/x-www-form-urlencoded" {
		return ""
	}
	b, _ := io.ReadAll(req.Body)
	req.Body.Close()
	req.Body = io.NopCloser(bytes.NewReader(b)) // there is no GetBody, on purpose
	form, _ := url.ParseQuery(string(b))
	token := form.Get("refresh_token")
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rotated[token] {
		l.resent++
	}
	return token
}

func (l *link) answered(token string, body []byte) {
	var fields struct {
		Refresh string `json:"refresh_token"`
	}
	if token == "" || json.Unmarshal(body, &fields) != nil || fields.Refresh == "" || fields.Refresh == token {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rotated == nil {
		l.rotated = map[string]bool{}
	}
	l.rotated[token] = true
}

func (l *link) Load(ctx context.Context, key string) ([]byte, error) {
	if l.life.Err() != nil {
		return nil, l.life.Err()
	}
	return l.sharedStore.Load(ctx, key)
}

func (l *link) Save(ctx context.Context, key string, value []byte) error {
	if l.life.Err() != nil {
		return l.life.Err()
	}
	return l.sharedStore.Save(ctx, key, value)
}

func (l *link) Lock(ctx context.Context, name string) (func(), error) {
	if l.life.Err() != nil {
		return nil, l.life.Err()
	}
	unlock, err := l.sharedStore.Lock(ctx, name)
	if err != nil {
		return nil, err
	}
	return func() {
		if l.life.Err() != nil {
			time.Sleep(l.orphan)
		}
		unlock()
	}, nil
}

func (l *link) RoundTrip(req *http.Request) (*http.Response, error) {
	if l.life.Err() != nil {
		return nil, l.life.Err()
	}
	token := l.refreshToken(req)
	ctx, cancel := context.WithCancel(req.Context())
	defer cancel()
	defer context.AfterFunc(l.life, cancel)()
	resp, err := l.http.RoundTrip(req.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if l.life.Err() != nil {
		return nil, l.life.Err()
	}
	resp.Body = io.NopCloser(bytes.NewReader(b))
	if err == nil {
		l.answered(token, b)
	}
	return resp, err
}

// instance is one of several sessions of the same login.
type instance struct {
	*flow.Session
	link *link
	cfg  flow.Config
	end  context.CancelFunc
	done chan struct{}
}

// stop ends it as a SIGTERM does.
func (i *instance) stop() {
	i.end()
	<-i.done
}

// kill ends it as a SIGKILL does.
func (i *instance) kill() {
	i.link.cut()
	i.end()
	synctest.Wait()
}

// cluster is a world with a shared store.
type cluster struct {
	*world
	shared *sharedStore
	all    []*instance
	ended  []*instance
}

// share runs f with n instances and a fake clock.
func share(t *testing.T, n int, cfg flowtest.Config, f func(c *cluster)) {
	t.Helper()
	bubble(t, cfg, func(w *world) { f(newCluster(w, n)) })
}

func newCluster(w *world, n int) *cluster {
	c := &cluster{world: w, shared: newSharedStore()}
	w.Cleanup(func() {
		c.shared.heal()
		for _, i := range c.all {
			i.end()
		}
		for _, i := range append(c.all, c.ended...) {
			<-i.done
		}
	})
	for range n {
		c.start(0)
	}
	synctest.Wait()
	return c
}

// start adds an instance whose wall clock is wrong by skew.
func (c *cluster) start(skew time.Duration) *instance {
	life, cut := context.WithCancel(context.Background())
	i := &instance{link: &link{sharedStore: c.shared, http: c.as.RoundTripper(), life: life, cut: cut}, done: make(chan struct{})}
	i.cfg = c.cfg
	i.cfg.Store, i.cfg.HTTP = i.link, i.link
	s, err := flow.New(i.cfg)
	if err != nil {
		c.Fatal(err)
	}
	i.Session = s
	s.Skew(skew)
	ctx, end := context.WithCancel(context.Background())
	i.end = end
	go func() {
		defer close(i.done)
		defer cut()
		s.Run(ctx)
	}()
	c.all = append(c.all, i)
	return i
}

func (c *cluster) wantStates(want flow.State) {
	c.Helper()
	for n, i := range c.all {
		if st := i.Status(); st.State != want {
			c.Fatalf("instance %d: state %s, want %s: %s", n, st.State, want, asJSON(st))
		}
	}
}

// wantTokens asserts that all serve, with a token that the server accepts.
func (c *cluster) wantTokens() {
	c.Helper()
	for n, i := range c.all {
		if t := i.Current(); t == nil || !c.as.ValidToken(t.Value().Reveal()) {
			c.Fatalf("instance %d has no good token: %s", n, asJSON(i.Status()))
		}
	}
}

// within is how soon all know what one has done.
const within = flow.LookEvery + time.Second

// loginAll logs in by the first instance.
func (c *cluster) loginAll() {
	c.Helper()
	c.login(c.all[0].Session)
	c.sleep(within)
	c.wantStates(flow.StateAuthorized)
	c.wantTokens()
}
