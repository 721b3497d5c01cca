package lab

import (
	"net"
	"net/http"
	"os"
	"testing"
	"time"
)

// What the kernel says must grow by about what was spent, and tell ours from others'.
func TestTheKernelsAccountingIsFollowed(t *testing.T) {
	before, err := processCPU(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	var w Watch
	if _, err := w.Mark(); err != nil {
		t.Error(err)
	}
	n := 0
	for began := time.Now(); time.Since(began) < 100*time.Millisecond; n++ {
	}
	after, err := processCPU(os.Getpid())
	if spent := after - before; err != nil || spent < time.Millisecond || spent > 10*time.Second {
		t.Errorf("%v of processor time for 100 ms of counting to %d: %v", spent, n, err)
	}
	m, err := memory(os.Getpid())
	if err != nil || m.Own < 0.5 || m.RSS < m.Own {
		t.Errorf("%+v, %v", m, err)
	}
	if _, err := processCPU(1 << 30); err == nil {
		t.Error("a process that is not there has an accounting")
	}
}

// A server is this test's own binary, which listens where it is told.
func TestMain(m *testing.M) {
	if address := os.Getenv("LAB_TEST_LISTEN"); address != "" {
		l, err := net.Listen("tcp", address)
		if err != nil {
			os.Exit(3)
		}
		os.Exit(serveUntilTold(l))
	}
	os.Exit(m.Run())
}

func serveUntilTold(l net.Listener) int {
	_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(os.Getenv("GOGC")))
	}))
	return 0
}

func TestProcessIsStartedMeasuredAndStopped(t *testing.T) {
	t.Setenv("GOGC", "50") // whoever measures may have it; what is measured must not
	address, err := FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	p, err := Start(t.TempDir(), []string{"LAB_TEST_LISTEN=" + address}, os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Ready(20*time.Second, func() error { return Once(address) }); err != nil {
		t.Fatal(err)
	}
	res, err := http.Get("http://" + address)
	if err != nil {
		t.Fatal(err)
	}
	if res.ContentLength != 0 {
		t.Error("GOGC has reached the server")
	}
	_ = res.Body.Close()
	if d, err := p.CPU(); err != nil || d <= 0 {
		t.Errorf("%v, %v", d, err)
	}
	if m, err := p.Memory(); err != nil || m.Own <= 0 {
		t.Errorf("%+v, %v", m, err)
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	if Once(address) == nil {
		t.Error("it is still there")
	}
}

func TestProcessThatEndsByItselfIsTold(t *testing.T) {
	p, err := Start(t.TempDir(), []string{"LAB_TEST_LISTEN=nowhere"}, os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Ready(20*time.Second, func() error { return Once("127.0.0.1:1") }); err == nil {
		t.Error("it is said to be ready")
	}
	if err := p.Stop(); err == nil {
		t.Error("its end is said to be a good one")
	}
}
