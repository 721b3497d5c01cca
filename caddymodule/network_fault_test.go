package caddymodule

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// door is a TCP address in front of the authorization server, which can be shut.
type door struct {
	t    *testing.T
	addr string

	mu       sync.Mutex
	to       string // set before the first connection is made
	listener net.Listener
	open     map[net.Conn]bool
	wg       sync.WaitGroup
}

// newDoor makes a door that is open, but leads nowhere before to is set.
func newDoor(t *testing.T) *door {
	d := &door{t: t, addr: "127.0.0.1:0", open: map[net.Conn]bool{}}
	d.unshut()
	t.Cleanup(func() {
		d.shut()
		d.reset()
		d.wg.Wait()
	})
	return d
}

// unshut lets connections in, at the same address as before.
func (d *door) unshut() {
	d.t.Helper()
	l, err := net.Listen("tcp", d.addr)
	if err != nil {
		d.t.Fatal(err)
	}
	d.addr, d.listener = l.Addr().String(), l
	d.wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			d.mu.Lock()
			to := d.to
			d.mu.Unlock()
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			d.mu.Lock()
			d.open[in] = true
			d.mu.Unlock()
			d.wg.Go(func() {
				_, _ = io.Copy(out, in)
				out.Close()
			})
			d.wg.Go(func() {
				_, _ = io.Copy(in, out)
				in.Close()
				d.mu.Lock()
				defer d.mu.Unlock()
				delete(d.open, in)
			})
		}
	})
}

// shut refuses new connections.
func (d *door) shut() { d.listener.Close() }

// reset breaks all connections, with an RST, and returns how many there were.
func (d *door) reset() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := len(d.open)
	for c := range d.open {
		_ = c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
	return n
}

// leadTo says where connections go.
func (d *door) leadTo(url string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.to = strings.TrimPrefix(url, "http://")
}

// rigBehind is a rig whose authorization server is known by the address of a door.
func rigBehind(d *door, cfg flowtest.Config) *rig {
	d.t.Helper()
	cfg.Issuer = "http://" + d.addr
	x := newRig(d.t, cfg)
	d.leadTo(x.issuer)
	x.issuer = cfg.Issuer
	return x
}

// S95 of the scorecard: idle connections are broken, and those of refreshes that wait for their answer.
func TestAResetOfConnectionsCostsNoCall(t *testing.T) {
	t.Parallel()
	if !apart(t) {
		return
	}
	d := newDoor(t)
	// Long enough for two more attempts after a broken one, each with its claim, on a busy machine.
	x := rigBehind(d, flowtest.Config{AccessTokenLifetime: 6 * time.Second})
	x.load(x.config(t.Name(), "", "a", proxy))
	s := x.login("default")
	tr := x.drive("http://a/")
	idle := 0
	for range 3 {
		idle += d.reset()
		broken := make(chan int, 1)
		x.as.Script(flowtest.Refresh, flowtest.Response{Func: func(_ http.ResponseWriter, r *http.Request) {
			broken <- d.reset()
			<-r.Context().Done()
		}})
		old := s.Current()
		if receive(t, broken, "a refresh") == 0 {
			t.Error("the refresh has no connection to break")
		}
		// Not when the server has answered, but when the answer is here: what it holds must not get lost on the way.
		until(t, "another token", func() bool {
			now := s.Current() // none for a moment, if the next attempt comes after the lapse
			return tr.failing() || now != nil && now != old
		})
	}
	if idle == 0 {
		t.Error("there was no idle connection to break")
	}
	tr.check(t)
	await(t, s.Session, flow.StateAuthorized)
}

// S95 of the scorecard: nothing listens there, and then it does.
func TestAServerThatComesBackIsFoundWithoutARestart(t *testing.T) {
	t.Parallel()
	if !apart(t) {
		return
	}
	d := newDoor(t)
	x := rigBehind(d, flowtest.Config{})
	d.shut()
	x.load(x.config(t.Name(), "", "a", proxy))
	s := x.session("default")
	if _, err := s.Login(t.Context()); err == nil {
		t.Fatal("a login starts")
	}
	if st := s.Status(); st.Error == nil || !strings.Contains(st.Error.Description, "connection refused") {
		t.Errorf("the status says %+v", st.Error)
	}
	d.unshut()
	x.loginOnDemand(s, "http://a/")

	// And again, for as long as a token lasts and longer.
	x.as.SetConfig(func(c *flowtest.Config) { c.AccessTokenLifetime = time.Second })
	if _, err := s.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.shut()
	d.reset()
	await(t, s.Session, flow.StateUnavailable)
	if got := x.get("http://a/"); got.status != http.StatusServiceUnavailable || got.header.Get("Retry-After") == "" {
		t.Errorf("a call is answered %d %s", got.status, got.body)
	}
	x.as.SetConfig(func(c *flowtest.Config) { c.AccessTokenLifetime = time.Hour })
	d.unshut()
	await(t, s.Session, flow.StateAuthorized)
	if failure := x.tryGet("http://a/"); failure != "" {
		t.Error(failure)
	}
}

// loginOnDemand has the calls of a client start the login, and a person approve it.
func (x *rig) loginOnDemand(s *running, url string) {
	x.t.Helper()
	until(x.t, "a code", func() bool { return x.get(url).status != 0 && s.Status().Login != nil })
	if err := x.as.Approve(s.Status().Login.UserCode); err != nil {
		x.t.Fatal(err)
	}
	await(x.t, s.Session, flow.StateAuthorized)
}

// nameServer answers all questions for an IPv4 address with 127.0.0.1, or says that the name does not exist.
type nameServer struct {
	addr string
	v6   net.IP // the answer to those for an IPv6 address, if there is one
	mu   sync.Mutex
	ok   bool
	asks int
}

func newNameServer(t *testing.T) *nameServer {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &nameServer{addr: conn.LocalAddr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		q := make([]byte, 512)
		for {
			size, from, err := conn.ReadFrom(q)
			if err != nil {
				return
			}
			if a := n.answer(q[:size]); a != nil {
				_, _ = conn.WriteTo(a, from)
			}
		}
	})
	t.Cleanup(func() { conn.Close(); wg.Wait() })
	return n
}

// answer is the answer to a question (RFC 1035 §4.1).
func (n *nameServer) answer(q []byte) []byte {
	end := 12
	for end < len(q) && q[end] != 0 {
		end += int(q[end]) + 1
	}
	if end += 5; end > len(q) {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asks++
	a := slices.Clone(q[:end])                              // additional records are left out
	copy(a[2:], []byte{0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}) // a response, recursion available
	switch kind := a[end-3]; {
	case !n.ok:
		a[3] |= 3 // NXDOMAIN
	case kind == 1:
		a[7] = 1
		a = append(a, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 127, 0, 0, 1)
	case kind == 28 && n.v6 != nil: // RFC 3596 §2.1
		a[7] = 1
		a = append(append(a, 0xc0, 12, 0, 28, 0, 1, 0, 0, 0, 0, 0, 16), n.v6...)
	}
	return a
}

func (n *nameServer) set(ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ok = ok
}

// S95 of the scorecard: the name does not exist, and then it does.
func TestANameThatAppearsIsFoundWithoutARestart(t *testing.T) {
	t.Parallel()
	if !apart(t) {
		return
	}
	names := newNameServer(t)
	d := newDoor(t)
	_, port, _ := net.SplitHostPort(d.addr)
	issuer := "http://as.example.test:" + port
	x := newRig(t, flowtest.Config{Issuer: issuer, AccessTokenLifetime: 2 * time.Second})
	d.leadTo(x.issuer)
	x.issuer = issuer
	x.load(x.config(t.Name(), "", "a",
		"device_flow API {\n LOGIN\n insecure_http\n auth_transport http {\n  resolvers "+names.addr+"\n }\n}"))
	s := x.session("default")
	if _, err := s.Login(t.Context()); err == nil {
		t.Fatal("a login starts")
	}
	if st := s.Status(); st.Error == nil || !strings.Contains(st.Error.Description, "no such host") {
		t.Errorf("the status says %+v", st.Error)
	}
	names.set(true)
	x.loginOnDemand(s, "http://a/")

	old, tr := s.Current(), x.drive("http://a/")
	until(t, "another token", func() bool { return tr.failing() || s.Current() != old })
	tr.check(t)
	names.set(false)
	d.reset() // else the name is not asked for
	await(t, s.Session, flow.StateUnavailable)
	names.set(true)
	await(t, s.Session, flow.StateAuthorized)
	names.mu.Lock()
	defer names.mu.Unlock()
	if names.asks < 4 {
		t.Errorf("%d questions", names.asks)
	}
}

// S109 of the scorecard.
func TestAStartAndAReloadWhileEverythingIsDown(t *testing.T) {
	t.Parallel()
	if !apart(t) {
		return
	}
	disk := newDisk(t)
	d := newDoor(t)
	x := rigBehind(d, flowtest.Config{})
	x.load(x.configOn("one"))
	first := x.login("default")
	x.load(x.config(`"`+t.Name()+`"`, "", "b", "respond zero")) // ends the session
	receive(t, first.ended, "the end of the session")
	d.shut()
	d.reset()
	disk.breaks(faults{load: disk.hang, store: disk.hang, lock: disk.hang})
	for _, want := range []string{"start", "reload"} {
		began := time.Now()
		x.load(x.configOn(want))
		x.awaitAnswer("http://b/", want)
		took := time.Since(began)
		t.Logf("the %s took %v", want, took.Round(time.Millisecond))
		if took >= 5*time.Second {
			t.Errorf("the %s took %v", want, took)
		}
		if got := x.get("http://a/"); got.status != http.StatusServiceUnavailable {
			t.Errorf("a call is answered %d %s", got.status, got.body)
		}
	}
	disk.heal()
	d.unshut()
	until(t, "the stored login", func() bool { return x.tryGet("http://a/") == "" })
	if n := x.as.Count(flowtest.Device); n != 1 {
		t.Errorf("%d codes were asked for, want the first only", n)
	}
}

// certificate is one for a test server; without a parent it is its own.
func certificate(t *testing.T, parent *tls.Certificate, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: "test"},
		NotBefore:    time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		IsCA:        parent == nil, BasicConstraintsValid: true,
	}
	if change != nil {
		change(c)
	}
	signer, by := c, any(key)
	if parent != nil {
		signer, by = parent.Leaf, parent.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, c, signer, &key.PublicKey, by)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// S36 of the scorecard.
func TestAServerWithoutProperTLSIsRefused(t *testing.T) {
	root := certificate(t, nil, nil)
	good := certificate(t, &root, nil)
	for name, c := range map[string]struct {
		cert    tls.Certificate
		version uint16 // the highest
		trusted bool
		reason  string // empty: it works
	}{
		"self-signed":             {root, tls.VersionTLS13, false, "unknown authority"},
		"self-signed and trusted": {root, tls.VersionTLS13, true, ""},
		"of a trusted authority":  {good, tls.VersionTLS13, true, ""},
		"expired": {
			certificate(t, &root, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Hour) }),
			tls.VersionTLS13, true, "expired",
		},
		"for another name": {
			certificate(t, &root, func(c *x509.Certificate) { c.IPAddresses = nil; c.DNSNames = []string{"other.test"} }),
			tls.VersionTLS13, true, "127.0.0.1",
		},
		"an old protocol": {good, tls.VersionTLS10, true, "protocol version"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			x := newRig(t, flowtest.Config{Issuer: "https://" + l.Addr().String()})
			x.issuer = "https://" + l.Addr().String()
			server := &httptest.Server{Listener: l, Config: &http.Server{Handler: x.as, ErrorLog: log.New(io.Discard, "", 0)}, TLS: &tls.Config{
				Certificates: []tls.Certificate{c.cert}, MinVersion: tls.VersionTLS10, MaxVersion: c.version,
			}}
			server.StartTLS()
			t.Cleanup(server.Close)
			how := ""
			if c.trusted {
				file := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate[0]})
				if err := os.WriteFile(filepath.Join(x.dir, "root.pem"), file, 0o600); err != nil {
					t.Fatal(err)
				}
				how = "auth_transport http {\n  tls_trust_pool file DIR/root.pem\n }\n"
			}
			x.load(x.config(`"`+t.Name()+`"`, "", "a", "device_flow API {\n LOGIN\n "+how+"}"))
			if c.reason == "" {
				x.login("default")
				if failure := x.tryGet("http://a/"); failure != "" {
					t.Error(failure)
				}
				return
			}
			s := x.session("default")
			if _, err := s.Login(t.Context()); err == nil {
				t.Error("a login starts")
			}
			if st := s.Status(); st.Error == nil || !strings.Contains(st.Error.Description, c.reason) {
				t.Errorf("the status says %+v, want %q", st.Error, c.reason)
			} else {
				t.Logf("%s, %s: %s", st.State, st.Error.Action, st.Error.Description)
			}
			if got := x.get("http://a/"); got.status != http.StatusServiceUnavailable || !strings.Contains(got.body, "safe connection") {
				t.Errorf("a call is answered %d %s", got.status, got.body)
			}
			if got := x.get("http://a/.device-flow", refreshHeader, "1"); !strings.Contains(got.body, "certificate of the login server") || !strings.Contains(got.body, c.reason) {
				t.Errorf("the status page says %s", got.body)
			}
			if sent := x.as.Requests(); len(sent) != 0 {
				t.Errorf("the server has got %d requests", len(sent))
			}
		})
	}
}

// forwardProxy is an HTTP proxy that notes what it is asked for. Whatever the name, it goes to one server, and it
// opens no tunnels.
type forwardProxy struct {
	url string
	to  string
	mu  sync.Mutex
	got []string // method and host
}

func newForwardProxy(t *testing.T, to string) *forwardProxy {
	p := &forwardProxy{to: to}
	server := httptest.NewServer(p)
	t.Cleanup(server.Close)
	p.url = server.URL
	return p
}

func (p *forwardProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.got = append(p.got, r.Method+" "+r.Host)
	p.mu.Unlock()
	if r.Method == http.MethodConnect || r.URL.Host == "" {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	out := r.Clone(r.Context())
	out.URL.Host, out.RequestURI = p.to, ""
	resp, err := http.DefaultTransport.RoundTrip(out)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body)
}

// all is what came in so far.
func (p *forwardProxy) all() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.got)
}

// asked reports whether a request came in.
func (p *forwardProxy) asked(want string) bool { return slices.Contains(p.all(), want) }

// S96 of the scorecard, by configuration.
func TestAuthTransportGoesThroughAProxy(t *testing.T) {
	const issuer = "http://as.example.test"
	x := newRig(t, flowtest.Config{Issuer: issuer, AccessTokenLifetime: 2 * time.Second})
	p := newForwardProxy(t, strings.TrimPrefix(x.issuer, "http://"))
	t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)
	x.issuer = issuer
	x.load(x.config(t.Name(), "", "a",
		"device_flow API {\n LOGIN\n insecure_http\n auth_transport http {\n  network_proxy url "+p.url+"\n }\n}"))
	x.login("default")
	tr := x.drive("http://a/")
	x.refreshes(1, tr)
	tr.check(t)
	for _, want := range []string{"GET as.example.test", "POST as.example.test"} {
		if !p.asked(want) {
			t.Errorf("the proxy has not seen %q, but %q", want, p.all())
		}
	}
	for _, req := range p.all() {
		if strings.HasSuffix(req, x.api) {
			t.Errorf("%s: the calls go through the proxy, too", req)
		}
	}

	secure := "device_flow API {\n issuer https://secure.example.test\n client_id x\n auth_transport http {\n  network_proxy url " + p.url + "\n }\n}"
	x.load(x.config(t.Name(), "", "a", secure))
	if _, err := x.session("default").Login(t.Context()); err == nil {
		t.Error("the tunnel leads somewhere")
	}
	if want := "CONNECT secure.example.test:443"; !p.asked(want) {
		t.Errorf("the proxy has not seen %q, but %q", want, p.all())
	}
}

// S96 of the scorecard, by environment.
func TestTheEnvironmentsProxyIsUsed(t *testing.T) {
	t.Parallel()
	if hasProcess(t) {
		x := newRig(t, flowtest.Config{})
		x.load(x.config(t.Name(), "device_flow tls {\n issuer https://secure.example.test\n client_id x\n}\n"+
			"device_flow plain {\n issuer http://as.example.test\n client_id x\n insecure_http\n}\n", "a", proxy))
		for _, name := range []string{"tls", "plain"} {
			if _, err := x.session(name).Login(t.Context()); err == nil {
				t.Errorf("%s: the proxy leads somewhere", name)
			}
		}
		x.login("default") // loopback needs no proxy
		return
	}
	// Go reads these variables once in the life of a process.
	p := newForwardProxy(t, "127.0.0.1:0") // nowhere
	ownProcess(t, "NO_PROXY=", "no_proxy=", "HTTPS_PROXY="+p.url, "https_proxy="+p.url, "HTTP_PROXY="+p.url, "http_proxy="+p.url)
	for _, want := range []string{"CONNECT secure.example.test:443", "GET as.example.test"} {
		if !p.asked(want) {
			t.Errorf("the proxy has not seen %q, but %q", want, p.all())
		}
	}
	for _, req := range p.all() {
		if strings.Contains(req, "127.0.0.1") {
			t.Errorf("%s: loopback goes through the proxy", req)
		}
	}
}
