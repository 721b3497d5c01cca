package caddymodule

import (
	"net"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// blackHole makes a port at ::1 that swallows whoever wants to connect: a listener whose queue is full and which
// accepts nobody. Linux then drops the first packet of a connection, as a broken route does. It returns nil where this
// machine has no IPv6.
func blackHole(t *testing.T, port string) net.IP {
	t.Helper()
	addr := net.JoinHostPort("::1", port)
	l, err := net.Listen("tcp6", addr)
	if err != nil {
		t.Logf("no IPv6 here: %v", err)
		return nil
	}
	t.Cleanup(func() { l.Close() })
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if e := raw.Control(func(fd uintptr) { err = syscall.Listen(int(fd), 0) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
	for range 10 {
		c, err := net.DialTimeout("tcp6", addr, 100*time.Millisecond)
		if e, ok := err.(net.Error); ok && e.Timeout() {
			return net.IPv6loopback
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("the queue does not get full")
	return nil
}

// S95 of the scorecard: the server's name has an IPv6 address first that nothing comes back from, and an IPv4 address
// that works.
func TestAnIPv6AddressThatIsABlackHoleCostsAMoment(t *testing.T) {
	t.Parallel()
	if !apart(t) {
		return
	}
	names := newNameServer(t)
	d := newDoor(t)
	_, port, _ := net.SplitHostPort(d.addr)
	names.v6 = blackHole(t, port)
	if names.v6 == nil {
		names.v6 = net.ParseIP("100::1") // RFC 6666: there is nothing; without IPv6, not even a way
	}
	names.set(true)
	issuer := "http://as.example.test:" + port
	x := newRig(t, flowtest.Config{Issuer: issuer, AccessTokenLifetime: 3 * time.Second})
	d.leadTo(x.issuer)
	x.issuer = issuer
	x.load(x.config(t.Name(), "", "a",
		"device_flow API {\n LOGIN\n insecure_http\n auth_transport http {\n  resolvers "+names.addr+"\n }\n}"))

	began := time.Now()
	s := x.login("default")
	took := time.Since(began)
	t.Logf("the login took %v", took.Round(time.Millisecond))
	if took >= 5*time.Second {
		t.Errorf("the login took %v", took)
	}
	// RFC 8305 §5: the other address gets its turn a moment later.
	if names.v6.IsLoopback() && took < 250*time.Millisecond {
		t.Errorf("the login took %v only: the IPv6 address was not tried, so this proves nothing", took)
	}
	tr := x.drive("http://a/")
	for range 2 {
		if d.reset() == 0 { // else the name is not asked for
			t.Error("there is no connection to break")
		}
		old := s.Current()
		until(t, "another token", func() bool {
			now := s.Current() // none for a moment, if the next attempt comes after the lapse
			return tr.failing() || now != nil && now != old
		})
	}
	tr.check(t)

	// And while nobody is logged in, who calls is told the code by the very first answer.
	if err := s.Logout(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.reset()
	if got := x.get("http://a/"); got.status != http.StatusServiceUnavailable || s.Status().Login == nil {
		t.Errorf("a call is answered %d %s", got.status, got.body)
	}
}
