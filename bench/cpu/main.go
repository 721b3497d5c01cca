// Command cpu measures what a call costs Caddy itself: the processor time per request of a plain reverse_proxy that adds
// nothing, and of device_flow, at 32 connections, in turns of a second each.
//
//	go run ./bench/cpu [-turns 30]
//
// The two are processes of the same binary with the same upstream. The time is the kernel's accounting of each process
// (/proc, so Linux only); what the caller and the upstream need is not in it.
package main

import (
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
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

const (
	connections = 32
	slice       = time.Second
	tick        = 10 * time.Millisecond // USER_HZ is 100 on every Linux
)

func main() {
	turns := flag.Int("turns", 30, "how many seconds each of the two is measured")
	flag.Parse()
	if err := run(*turns, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "cpu:", err)
		os.Exit(1)
	}
}

func run(turns int, out io.Writer) (err error) {
	folder, err := os.MkdirTemp("", "deviceflow-cpu-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	binary := filepath.Join(folder, "caddy")
	if output, err := exec.Command("go", "build", "-o", binary, "github.com/deviceflow/caddy-deviceflow/cmd/caddy").CombinedOutput(); err != nil {
		return fmt.Errorf("building Caddy: %w\n%s", err, output)
	}
	as := flowtest.New(flowtest.Config{AutoApprove: true, Interval: time.Second})
	defer as.Close()
	issuer, err := as.Start()
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	upstream := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "hello") })}
	go func() { _ = upstream.Serve(l) }()
	defer upstream.Close()

	sites := []*site{
		{name: "reverse_proxy", directive: "reverse_proxy " + l.Addr().String()},
		{name: "device_flow", directive: fmt.Sprintf("device_flow http://%s {\n\t\tissuer %s\n\t\tclient_id demo-client\n\t\tscope offline_access\n\t\tlogin eager\n\t}", l.Addr(), issuer)},
	}
	for _, s := range sites {
		if err := s.start(binary, folder); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.stop()) }()
		if err := s.ready(20 * time.Second); err != nil {
			return err
		}
	}
	for n := range turns + 2 {
		for i := range sites {
			s := sites[(i+n)%2] // who goes first takes turns, too
			per, err := s.turn()
			if err != nil {
				return err
			}
			if n >= 2 { // the first are for warming up
				s.per = append(s.per, per)
			}
		}
	}
	fmt.Fprintf(out, "%d turns of %v each, %d connections (%s/%s, %d CPUs)\n", turns, slice, connections, runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
	var ratios []float64
	for i := range turns {
		ratios = append(ratios, sites[1].per[i]/sites[0].per[i])
	}
	for _, s := range sites {
		slices.Sort(s.per)
		fmt.Fprintf(out, "%-14s %6.1f µs of CPU per request (median; quarters %.1f and %.1f), %d failed\n",
			s.name, s.per[turns/2], s.per[turns/4], s.per[turns*3/4], s.failed)
	}
	slices.Sort(ratios)
	fmt.Fprintf(out, "ratio of the pairs: median %.3f, quarters %.3f and %.3f\n", ratios[turns/2], ratios[turns/4], ratios[turns*3/4])
	return nil
}

// site is one of the two.
type site struct {
	name, directive string
	port            string
	process         *exec.Cmd
	client          *http.Client
	per             []float64 // µs per request, one for each turn
	failed          int64
}

func (s *site) start(binary, folder string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	_, s.port, _ = net.SplitHostPort(l.Addr().String())
	if err := l.Close(); err != nil {
		return err
	}
	home := filepath.Join(folder, s.name)
	if err := os.MkdirAll(home, 0o700); err != nil {
		return err
	}
	config := fmt.Sprintf("{\n\tadmin off\n\tpersist_config off\n}\nhttp://:%s {\n\tbind 127.0.0.1\n\t%s\n}\n", s.port, s.directive)
	file := filepath.Join(home, "Caddyfile")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return err
	}
	s.process = exec.Command(binary, "run", "--config", file, "--adapter", "caddyfile")
	s.process.Env = append(os.Environ(), "XDG_DATA_HOME="+home, "XDG_CONFIG_HOME="+home)
	s.client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: connections}, Timeout: 30 * time.Second}
	return s.process.Start()
}

func (s *site) stop() error {
	s.client.CloseIdleConnections()
	if err := s.process.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return s.process.Wait()
}

func (s *site) ready(limit time.Duration) error {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if s.call() == nil {
			return nil
		}
	}
	return fmt.Errorf("%s: no answer within %v", s.name, limit)
}

func (s *site) call() error {
	r, err := s.client.Get("http://127.0.0.1:" + s.port + "/")
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return err
	}
	if r.StatusCode != http.StatusOK {
		return errors.New(r.Status)
	}
	return nil
}

// turn calls for a while, as fast as the answers come, and returns what each call cost.
func (s *site) turn() (perRequest float64, err error) {
	before, err := s.used()
	if err != nil {
		return 0, err
	}
	var (
		wg    sync.WaitGroup
		calls atomic.Int64
		end   = time.Now().Add(slice)
	)
	for range connections {
		wg.Go(func() {
			for time.Now().Before(end) {
				if s.call() != nil {
					atomic.AddInt64(&s.failed, 1)
				}
				calls.Add(1)
			}
		})
	}
	wg.Wait()
	after, err := s.used()
	if err != nil {
		return 0, err
	}
	return float64((after - before).Microseconds()) / float64(calls.Load()), nil
}

// used is the processor time that the process has had.
func (s *site) used() (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.process.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b), ") ") // the name before may hold blanks
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, fmt.Errorf("cannot read the accounting of the kernel: %q", b)
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	return time.Duration(user+system) * tick, errors.Join(err1, err2)
}
