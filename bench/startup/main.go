// Command startup measures how soon after its start a Caddy gives the first proxied answer: with a login on disk and
// the device_flow directive, and the same binary as a plain reverse_proxy, in turns.
//
//	go run ./bench/startup [-n 20]
//
// It builds Caddy, and everything it talks to runs in this process, on loopback. It measures and judges nothing; on a
// machine that does other work its figures mean little.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

func main() {
	runs := flag.Int("n", 20, "how many starts of each kind")
	flag.Parse()
	if err := run(*runs, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "startup:", err)
		os.Exit(1)
	}
}

// kind is one of the configurations that are compared.
type kind struct {
	name      string
	caddyfile string
	address   string
	times     []time.Duration
}

func run(runs int, out io.Writer) (err error) {
	if runs < 1 {
		return errors.New("-n: measure at least one start")
	}
	folder, err := os.MkdirTemp("", "deviceflow-startup-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	binary := filepath.Join(folder, "caddy")
	if output, err := exec.Command("go", "build", "-o", binary, "github.com/deviceflow/caddy-deviceflow/cmd/caddy").CombinedOutput(); err != nil {
		return fmt.Errorf("building Caddy: %w\n%s", err, output)
	}

	as := flowtest.New(flowtest.Config{AutoApprove: true, Interval: time.Second, AccessTokenLifetime: 24 * time.Hour})
	defer as.Close()
	issuer, err := as.Start()
	if err != nil {
		return err
	}
	guarded, err := as.StartAPI()
	if err != nil {
		return err
	}
	open := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "hello") }))
	defer open.Close()

	kinds := []*kind{
		{name: "reverse_proxy", caddyfile: "reverse_proxy " + open.URL},
		{name: "device_flow", caddyfile: "device_flow " + guarded + " {\n\t\tissuer " + issuer + "\n\t\tclient_id demo-client\n\t\tscope offline_access\n\t}"},
	}
	for _, k := range kinds {
		home := filepath.Join(folder, k.name)
		if err := os.Mkdir(home, 0o700); err != nil {
			return err
		}
		if k.address, err = freeAddress(); err != nil {
			return err
		}
		_, port, err := net.SplitHostPort(k.address)
		if err != nil {
			return err
		}
		config := fmt.Sprintf("{\n\tadmin off\n\tpersist_config off\n}\n\nhttp://:%s {\n\tbind 127.0.0.1\n\t%s\n}\n", port, k.caddyfile)
		if err := os.WriteFile(filepath.Join(home, "Caddyfile"), []byte(config), 0o600); err != nil {
			return err
		}
		// The first start is not measured: it logs in, and the files are in the page cache after it.
		if _, err := measure(binary, home, k.address, 30*time.Second); err != nil {
			return fmt.Errorf("%s: %w", k.name, err)
		}
	}
	logins := as.Stats().Logins
	for range runs {
		for _, k := range kinds {
			took, err := measure(binary, filepath.Join(folder, k.name), k.address, 30*time.Second)
			if err != nil {
				return fmt.Errorf("%s: %w", k.name, err)
			}
			k.times = append(k.times, took)
		}
		slices.Reverse(kinds) // neither is always the one after the other
	}
	if got := as.Stats(); got.Logins != logins || got.Refreshes != 0 {
		return fmt.Errorf("the login was not taken from disk: %d logins, %d refreshes", got.Logins, got.Refreshes)
	}

	fmt.Fprintf(out, "from the start of the process to the first proxied 200, %d starts each (%s/%s, %d CPUs)\n",
		runs, runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
	slices.SortFunc(kinds, func(a, b *kind) int { return bytes.Compare([]byte(b.name), []byte(a.name)) })
	for _, k := range kinds {
		slices.Sort(k.times)
		fmt.Fprintf(out, "%-14s median %6.1f ms   least %6.1f ms   most %6.1f ms\n", k.name, ms(median(k.times)), ms(k.times[0]), ms(k.times[runs-1]))
	}
	fmt.Fprintf(out, "%-14s %+.1f ms\n", "difference", ms(median(kinds[1].times)-median(kinds[0].times)))
	return nil
}

// measure starts Caddy, asks until it answers 200, and ends it.
func measure(binary, home, address string, limit time.Duration) (took time.Duration, err error) {
	var log bytes.Buffer
	cmd := exec.Command(binary, "run", "--config", "Caddyfile", "--adapter", "caddyfile")
	cmd.Dir = home
	cmd.Env = append(os.Environ(), "HOME="+home, "XDG_DATA_HOME="+home, "XDG_CONFIG_HOME="+home)
	cmd.Stdout, cmd.Stderr = &log, &log
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}

	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // Wait reports what matters
		kill := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		defer kill.Stop()
		e := cmd.Wait()
		// Caddy may not have come to catching signals yet: a goroutine of its own asks for them.
		if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); e != nil && !(ok && status.Signal() == syscall.SIGTERM) {
			err = errors.Join(err, fmt.Errorf("caddy: %w\n%s", e, log.String()))
		}
	}()
	for time.Since(began) < limit {
		res, err := client.Get("http://" + address + "/")
		if err != nil {
			time.Sleep(500 * time.Microsecond) // it does not listen yet
			continue
		}
		_, err = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		if err == nil && res.StatusCode == http.StatusOK {
			return time.Since(began), nil
		}
		time.Sleep(10 * time.Millisecond) // the login, at the very first start
	}
	return 0, fmt.Errorf("no answer within %v", limit)
}

// freeAddress is an address that nothing listens on.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

func median(sorted []time.Duration) time.Duration {
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
