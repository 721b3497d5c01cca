package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/deviceflow/caddy-deviceflow/bench/lab"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// bench is what the stages share.
type bench struct {
	plan   plan
	folder string
	watch  lab.Watch
	stops  []func() error

	stock, full, slim, oauth2 string // binaries

	open, guarded string // addresses of the upstream: for everybody, and for requests with a bearer token
	issuer        string // of tokens that last
}

// close ends what was started, the last first.
func (b *bench) close() error {
	var errs []error
	for _, stop := range slices.Backward(b.stops) {
		errs = append(errs, stop())
	}
	return errors.Join(errs...)
}

// The flags of Caddy's own releases and of xcaddy, for all of them.
var buildFlags = []string{"-trimpath", "-ldflags", "-s -w", "-tags", "nobadger,nomysql,nopgx"}

func (b *bench) build(ctx context.Context, r *results) error {
	for _, one := range []struct {
		binary      *string
		name, which string
	}{
		{&b.stock, "stock", "github.com/caddyserver/caddy/v2/cmd/caddy"},
		{&b.full, "full", "./cmd/caddy"},
		{&b.slim, "slim", "./cmd/caddy-slim"},
		{&b.oauth2, "oauth2proxy", "./bench/oauth2proxy"},
	} {
		*one.binary = filepath.Join(b.folder, one.name)
		cmd := exec.CommandContext(ctx, "go", append(append([]string{"build", "-o", *one.binary}, buildFlags...), one.which)...)
		cmd.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("building %s: %w\n%s", one.which, err, out)
		}
	}
	for _, binary := range []string{b.stock, b.full, b.slim} {
		info, err := os.Stat(binary)
		if err != nil {
			return err
		}
		r.sizes = append(r.sizes, float64(info.Size())/1e6)
	}
	return r.machine.read(ctx)
}

// surroundings starts an nginx as the API and an authorization server.
func (b *bench) surroundings(_ context.Context, _ *results) (err error) {
	if b.open, err = lab.FreeAddress(); err != nil {
		return err
	}
	if b.guarded, err = lab.FreeAddress(); err != nil {
		return err
	}
	folder, err := b.place("upstream")
	if err != nil {
		return err
	}
	config := nginxConfig(`
	server {
		listen ` + b.open + `;
		location / {
			if ($http_authorization !~ "^Bearer .") { return 200 "hello, world\n"; }
			return 200 "hello, world\n";
		}
	}
	server {
		listen ` + b.guarded + `;
		location / {
			if ($http_authorization !~ "^Bearer .") { return 401 "no token\n"; }
			return 200 "hello, world\n";
		}
	}`)
	if _, err := b.start(folder, nil, func() error { return lab.Once(b.open) }, "nginx.conf", config, nginx(folder)...); err != nil {
		return err
	}
	b.issuer, err = b.authorizationServer(flowtest.Config{AccessTokenLifetime: 24 * time.Hour}, flowtest.Response{})
	return err
}

// authorizationServer starts one that approves each login, and answers refreshes as told if that is more than nothing.
func (b *bench) authorizationServer(config flowtest.Config, refresh flowtest.Response) (issuer string, err error) {
	config.AutoApprove, config.Interval = true, time.Second
	as := flowtest.New(config)
	b.stops = append(b.stops, func() error { as.Close(); return nil })
	if refresh.Pass {
		as.ScriptAlways(flowtest.Refresh, refresh)
	}
	return as.Start()
}

// place is a new folder.
func (b *bench) place(name string) (string, error) {
	folder := filepath.Join(b.folder, strings.ReplaceAll(name, " ", "-"))
	return folder, os.Mkdir(folder, 0o700)
}

// start runs a server with a configuration file until close, and waits until it serves.
func (b *bench) start(folder string, env []string, probe func() error, file, config string, argv ...string) (*lab.Process, error) {
	if file != "" {
		if err := os.WriteFile(filepath.Join(folder, file), []byte(config), 0o600); err != nil {
			return nil, err
		}
	}
	p, err := lab.Start(folder, env, argv...)
	if err != nil {
		return nil, err
	}
	b.stops = append(b.stops, p.Stop)
	b.watch.Add(p)
	return p, p.Ready(30*time.Second, probe)
}

func nginx(folder string) []string {
	return []string{"nginx", "-e", "stderr", "-p", folder + "/", "-c", "nginx.conf"}
}

// nginxConfig keeps connections as long as it takes: closing them is not what is measured.
func nginxConfig(servers string) string {
	user := ""
	if os.Getuid() == 0 {
		user = "user root;\n" // the workers read nothing but what was read before they were
	}
	return user + `daemon off;
pid nginx.pid;
error_log stderr;
worker_processes auto;
worker_rlimit_nofile 16384;
events { worker_connections 8192; }
http {
	access_log off;
	default_type text/plain;
	client_body_temp_path body;
	proxy_temp_path proxy;
	fastcgi_temp_path fastcgi;
	uwsgi_temp_path uwsgi;
	scgi_temp_path scgi;
	keepalive_timeout 1h;
	keepalive_requests 1000000000;` + servers + `
}
`
}

// caddyfile is a site with one directive at an address.
func caddyfile(address, directive string) string {
	_, port, _ := net.SplitHostPort(address) // it comes from a listener
	return "{\n\tadmin off\n\tpersist_config off\n}\n\nhttp://:" + port + " {\n\tbind 127.0.0.1\n\t" + directive + "\n}\n"
}

func runCaddy(binary string) []string {
	return []string{binary, "run", "--config", "Caddyfile", "--adapter", "caddyfile"}
}

// deviceFlow is the short form with its defaults; more are further lines.
func deviceFlow(upstream, issuer string, more ...string) string {
	lines := append([]string{"issuer " + issuer, "client_id demo-client", "scope offline_access"}, more...)
	return "device_flow http://" + upstream + " {\n\t\t" + strings.Join(lines, "\n\t\t") + "\n\t}"
}
