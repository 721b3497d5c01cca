// Command steady measures whether a call ever waits for a refresh: one Caddy with two sites, a plain reverse_proxy and
// a device_flow whose tokens last three seconds at a slow authorization server, both called at the same pace.
//
//	go run ./bench/steady [-lifetimes 20]
//
// Everything runs on loopback. It measures and judges nothing, but counts the calls that failed.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

const (
	lifetime = 3 * time.Second
	latency  = 300 * time.Millisecond // of the token endpoint
	pace     = 4 * time.Millisecond   // between two calls of one site
)

func main() {
	n := flag.Int("lifetimes", 20, "how many lifetimes of a token to go on for")
	flag.Parse()
	if err := run(*n, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "steady:", err)
		os.Exit(1)
	}
}

func run(lifetimes int, out io.Writer) (err error) {
	folder, err := os.MkdirTemp("", "deviceflow-steady-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	binary := filepath.Join(folder, "caddy")
	if output, err := exec.Command("go", "build", "-o", binary, "github.com/deviceflow/caddy-deviceflow/cmd/caddy").CombinedOutput(); err != nil {
		return fmt.Errorf("building Caddy: %w\n%s", err, output)
	}
	as := flowtest.New(flowtest.Config{AutoApprove: true, Interval: time.Second, AccessTokenLifetime: lifetime})
	defer as.Close()
	as.ScriptAlways(flowtest.Refresh, flowtest.Response{Pass: true, Delay: latency})
	issuer, err := as.Start()
	if err != nil {
		return err
	}
	hello := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "hello") })
	guarded := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !as.ValidToken(bearer(r)) {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		hello(w, r)
	})
	sites := []*site{{name: "reverse_proxy", api: hello}, {name: "device_flow", api: guarded}}
	for _, s := range sites {
		if err := s.listen(); err != nil {
			return err
		}
		defer s.upstream.Close()
	}
	config := fmt.Sprintf(`{
	admin off
	persist_config off
}
http://:%s {
	bind 127.0.0.1
	reverse_proxy %s
}
http://:%s {
	bind 127.0.0.1
	device_flow %s {
		issuer %s
		client_id demo-client
		scope offline_access
		login eager
	}
}
`, sites[0].port, sites[0].upstreamURL(), sites[1].port, sites[1].upstreamURL(), issuer)
	if err := os.WriteFile(filepath.Join(folder, "Caddyfile"), []byte(config), 0o600); err != nil {
		return err
	}
	stop, err := startCaddy(binary, folder)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	if err := sites[1].ready(20 * time.Second); err != nil {
		return err
	}

	before := as.Stats().Refreshes
	end := time.Now().Add(time.Duration(lifetimes) * lifetime)
	var wg sync.WaitGroup
	for _, s := range sites {
		wg.Go(func() { s.call(end) })
	}
	wg.Wait()
	fmt.Fprintf(out, "%d lifetimes of %v, token endpoint %v, a call each %v on each site (%s/%s, %d CPUs); %d refreshes\n",
		lifetimes, lifetime, latency, pace, runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), as.Stats().Refreshes-before)
	for _, s := range sites {
		slices.Sort(s.took)
		n := len(s.took)
		fmt.Fprintf(out, "%-14s %6d calls  %d failed   median %6.2f ms   p99.9 %6.2f ms   most %6.2f ms\n",
			s.name, n, s.failed, ms(s.took[n/2]), ms(s.took[n*999/1000]), ms(s.took[n-1]))
	}
	return nil
}

// site is one of the two, with the upstream behind it.
type site struct {
	name     string
	api      http.Handler
	port     string
	upstream *http.Server
	address  string
	took     []time.Duration
	failed   int
}

func (s *site) listen() error {
	for _, what := range []*string{&s.address, &s.port} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		*what = l.Addr().String()
		if what == &s.address {
			s.upstream = &http.Server{Handler: s.api}
			go func() { _ = s.upstream.Serve(l) }()
			continue
		}
		_, s.port, _ = net.SplitHostPort(*what)
		if err := l.Close(); err != nil {
			return err
		}
	}
	return nil
}

func (s *site) upstreamURL() string { return "http://" + s.address }

func (s *site) ready(limit time.Duration) error {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if r, err := http.Get("http://127.0.0.1:" + s.port + "/"); err == nil {
			_ = r.Body.Close()
			if r.StatusCode == http.StatusOK {
				return nil
			}
		}
	}
	return fmt.Errorf("%s: no answer within %v", s.name, limit)
}

// call calls at a steady pace, whatever the answers take: a call that waits does not hold up the next.
func (s *site) call(end time.Time) {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}, Timeout: 30 * time.Second}
	defer client.CloseIdleConnections()
	var (
		wg sync.WaitGroup
		mu sync.Mutex
	)
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for time.Now().Before(end) {
		<-tick.C
		wg.Go(func() {
			began := time.Now()
			r, err := client.Get("http://127.0.0.1:" + s.port + "/")
			if err == nil {
				_, err = io.Copy(io.Discard, r.Body)
				_ = r.Body.Close()
			}
			mu.Lock()
			defer mu.Unlock()
			s.took = append(s.took, time.Since(began))
			if err != nil || r.StatusCode != http.StatusOK {
				s.failed++
			}
		})
	}
	wg.Wait()
}

// startCaddy runs Caddy; stop ends it.
func startCaddy(binary, folder string) (stop func() error, err error) {
	var log bytes.Buffer
	cmd := exec.Command(binary, "run", "--config", "Caddyfile", "--adapter", "caddyfile")
	cmd.Dir = folder
	cmd.Env = append(os.Environ(), "HOME="+folder, "XDG_DATA_HOME="+folder, "XDG_CONFIG_HOME="+folder)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM) // Wait reports what matters
		kill := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		defer kill.Stop()
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("caddy: %w\n%s", err, log.String())
		}
		return nil
	}, nil
}

func bearer(r *http.Request) string {
	v := r.Header.Get("Authorization")
	if len(v) < 7 {
		return ""
	}
	return v[7:]
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
