package caddymodule

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// patience bounds every wait; only a failing test uses it up.
const patience = time.Minute

// rig is a Caddy in this process, with an authorization server and an API on loopback. Callers reach Caddy by a unix
// socket, so that there is no port to collide on.
type rig struct {
	t      testing.TB
	as     *flowtest.Server
	issuer string
	api    string // host:port of an API that wants the tokens
	dir    string // of sockets and storage
	client *http.Client
}

func newRig(t testing.TB, cfg flowtest.Config) *rig {
	t.Helper()
	if cfg.Interval == 0 {
		cfg.Interval = 100 * time.Millisecond
	}
	dir, err := os.MkdirTemp("", "deviceflow") // t.TempDir can be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	logs.Lock()
	logs.text = make(map[string]*bytes.Buffer)
	logs.Unlock()
	x := &rig{t: t, as: flowtest.New(cfg), dir: dir}
	x.client = &http.Client{
		Timeout: patience,
		Transport: &http.Transport{
			DisableCompression: true,
			DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
				host, _, _ := net.SplitHostPort(addr)
				return new(net.Dialer).DialContext(ctx, "unix", x.socket(host))
			},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
		x.client.CloseIdleConnections()
		if v := x.as.Stats().Violations; len(v) > 0 && !t.Failed() {
			t.Errorf("the authorization server objects: %q", v)
		}
		x.as.Close()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if x.issuer, err = x.as.Start(); err != nil {
		t.Fatal(err)
	}
	api, err := x.as.StartAPI()
	if err != nil {
		t.Fatal(err)
	}
	x.api = strings.TrimPrefix(api, "http://")
	return x
}

// socket is where the site of that name listens.
func (x *rig) socket(site string) string { return filepath.Join(x.dir, site+".sock") }

// expand fills in what a test's Caddyfile leaves open.
func (x *rig) expand(s string) string {
	return strings.NewReplacer(
		"ISSUER", x.issuer, "API", x.api, "DIR", x.dir,
		"LOGIN", "issuer "+x.issuer+"\n client_id demo-client\n scope openid offline_access",
	).Replace(s)
}

// config is the JSON of a configuration. global is the rest of the global options; each site is its name and what is
// in its block. A name like b@a is site b at the socket of site a. The log goes to the memory log of that name.
func (x *rig) config(log, global string, sites ...string) string {
	x.t.Helper()
	var b strings.Builder
	b.WriteString("{\n admin off\n persist_config off\n storage file_system DIR/storage\n log {\n  output memory " + log +
		"\n  format json\n  level DEBUG\n }\n" + global + "\n}\n")
	for i := 0; i+1 < len(sites); i += 2 {
		host, at, shared := strings.Cut(sites[i], "@")
		if !shared {
			at = host
		}
		b.WriteString("http://" + host + " {\n bind unix/DIR/" + at + ".sock\n" + sites[i+1] + "\n}\n")
	}
	config, err := adapt(x.t, x.expand(b.String()))
	if err != nil {
		x.t.Fatal(err)
	}
	return config
}

// load makes Caddy run config, which replaces what has run before.
func (x *rig) load(config string) {
	x.t.Helper()
	if err := caddy.Load([]byte(config), true); err != nil {
		x.t.Fatal(err)
	}
}

// answer is a response that has been read.
type answer struct {
	status int
	header http.Header
	body   string
}

// get asks the site that the URL names; header is pairs of name and value.
func (x *rig) get(url string, header ...string) answer {
	x.t.Helper()
	req, err := http.NewRequestWithContext(x.t.Context(), http.MethodGet, url, nil)
	if err != nil {
		x.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := x.client.Do(req)
	for n := 0; n < 100 && errors.Is(err, io.EOF); n++ { // after a reload: the old server has accepted, and then closed
		resp, err = x.client.Do(req)
	}
	if err != nil {
		x.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		x.t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(body)}
}

// session is the running session of that name.
func (x *rig) session(name string) *running {
	x.t.Helper()
	s := runningSession(name)
	if s == nil {
		x.t.Fatalf("session %s does not run", name)
	}
	return s
}

// await waits for a state.
func await(t testing.TB, s *flow.Session, want flow.State) flow.Status {
	t.Helper()
	timeout := time.After(patience)
	for {
		st, changed := s.Watch()
		if st.State == want {
			return st
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("the session is %s (%+v), want %s", st.State, st.Error, want)
		}
	}
}

// login has a person log in: asks for a code, approves it, and waits for the token.
func (x *rig) login(name string) *running {
	x.t.Helper()
	s := x.session(name)
	st, err := s.Login(x.t.Context())
	if err != nil {
		x.t.Fatal(err)
	}
	if err := x.as.Approve(st.Login.UserCode); err != nil {
		x.t.Fatal(err)
	}
	await(x.t, s.Session, flow.StateAuthorized)
	return s
}

// receive waits for a signal of the code under test.
func receive[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
		panic("unreachable")
	}
}

// memoryLog is a log writer that keeps what is written.
type memoryLog struct {
	Name string `json:"name"`
}

// logs are what the memory logs hold, by name.
var logs struct {
	sync.Mutex
	text map[string]*bytes.Buffer
}

func init() { caddy.RegisterModule(memoryLog{}) }

func (memoryLog) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.logging.writers.memory", New: func() caddy.Module { return new(memoryLog) }}
}

func (m *memoryLog) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	return oneArg(d, &m.Name)
}

func (m memoryLog) String() string                      { return "memory " + m.Name }
func (m memoryLog) WriterKey() string                   { return "memory:" + m.Name }
func (m memoryLog) OpenWriter() (io.WriteCloser, error) { return m, nil }
func (m memoryLog) Close() error                        { return nil }
func (m memoryLog) Write(b []byte) (int, error) {
	logs.Lock()
	defer logs.Unlock()
	if logs.text[m.Name] == nil {
		logs.text[m.Name] = new(bytes.Buffer)
	}
	return logs.text[m.Name].Write(b)
}

// logged returns the lines of a memory log that hold all of parts.
func logged(name string, parts ...string) (lines []string) {
	logs.Lock()
	defer logs.Unlock()
	if logs.text[name] == nil {
		return nil
	}
	for line := range strings.Lines(logs.text[name].String()) {
		ok := true
		for _, p := range parts {
			ok = ok && strings.Contains(line, p)
		}
		if ok {
			lines = append(lines, line)
		}
	}
	return lines
}
