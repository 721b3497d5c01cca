package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/deviceflow/caddy-deviceflow/bench/lab"
)

// profile is the operator's, as in the Dockerfile and deploy/systemd.
var profile = []string{"GOGC=400", "GOMEMLIMIT=256MiB"}

// oneCore is what may be added where a core is enough for all calls.
const oneCore = "GOMAXPROCS=1"

// contestant is a server in the table of requests.
type contestant struct {
	name    string
	process *lab.Process
	address string
	load    *lab.Load
	slices  map[int][]lab.Slice // by the number of connections
	memory  map[int]lab.Memory  // after them
}

// The names of those that others are compared with.
const (
	stockName   = "Caddy"
	oursName    = "device_flow"
	profileName = "device_flow, operator's profile"
	oneCoreName = "device_flow, operator's profile, one core"
)

// contestants starts them. What they have in common: the upstream, and that each request leaves with a bearer token
// but for the first Caddy's, against which the others are measured.
func (b *bench) contestants() ([]*contestant, error) {
	var all []*contestant
	for _, one := range []struct {
		name string
		env  []string
		file string
		make func(folder, address string) (config string, argv []string)
	}{
		{name: "nginx, static header", file: "nginx.conf", make: func(folder, address string) (string, []string) {
			return nginxConfig(`
	upstream api { server ` + b.guarded + `; keepalive 256; keepalive_requests 1000000000; }
	server {
		listen ` + address + `;
		location / {
			proxy_pass http://api;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_set_header Authorization "Bearer static";
		}
	}`), nginx(folder)
		}},
		{name: "HAProxy, static header", file: "haproxy.cfg", make: func(_, address string) (string, []string) {
			return `global
	maxconn 8192
defaults
	mode http
	timeout connect 5s
	timeout client 1h
	timeout server 1h
frontend callers
	bind ` + address + `
	http-request set-header Authorization "Bearer static"
	default_backend api
backend api
	http-reuse always
	server api ` + b.guarded + `
`, []string{"haproxy", "-db", "-f", "haproxy.cfg"}
		}},
		{name: "httputil.ReverseProxy, oauth2.Transport", make: func(_, address string) (string, []string) {
			return "", []string{b.oauth2, "-listen", address, "-upstream", "http://" + b.guarded, "-issuer", b.issuer}
		}},
		{name: stockName, file: "Caddyfile", make: func(_, address string) (string, []string) {
			return caddyfile(address, "reverse_proxy "+b.open), runCaddy(b.stock)
		}},
		{name: "Caddy, `header_up {file}`", file: "Caddyfile", make: func(folder, address string) (string, []string) {
			return caddyfile(address, "reverse_proxy "+b.guarded+" {\n\t\theader_up Authorization \"Bearer {file."+filepath.Join(folder, "token")+"}\"\n\t}"), runCaddy(b.stock)
		}},
		{name: "Caddy, operator's profile", env: profile, file: "Caddyfile", make: func(_, address string) (string, []string) {
			return caddyfile(address, "reverse_proxy "+b.open), runCaddy(b.stock)
		}},
		{name: oursName, file: "Caddyfile", make: func(_, address string) (string, []string) {
			return caddyfile(address, deviceFlow(b.guarded, b.issuer)), runCaddy(b.full)
		}},
		{name: profileName, env: profile, file: "Caddyfile", make: func(_, address string) (string, []string) {
			return caddyfile(address, deviceFlow(b.guarded, b.issuer)), runCaddy(b.full)
		}},
		{name: oneCoreName, env: append(slices.Clone(profile), oneCore), file: "Caddyfile", make: func(_, address string) (string, []string) {
			return caddyfile(address, deviceFlow(b.guarded, b.issuer)), runCaddy(b.full)
		}},
		{name: "device_flow, slim", file: "Caddyfile", make: func(_, address string) (string, []string) {
			return caddyfile(address, deviceFlow(b.guarded, b.issuer)), runCaddy(b.slim)
		}},
	} {
		folder, err := b.place(fmt.Sprint("contestant", len(all)))
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(folder, "token"), []byte("static\n"), 0o600); err != nil {
			return nil, err
		}
		c := &contestant{name: one.name, slices: make(map[int][]lab.Slice), memory: make(map[int]lab.Memory)}
		if c.address, err = lab.FreeAddress(); err != nil {
			return nil, err
		}
		config, argv := one.make(folder, c.address)
		if c.process, err = b.start(folder, one.env, func() error { return lab.Once(c.address) }, one.file, config, argv...); err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
		all = append(all, c)
	}
	return all, nil
}

// requests gives the contestants their slices in turn.
func (b *bench) requests(ctx context.Context, r *results) error {
	all, err := b.contestants()
	if err != nil {
		return err
	}
	r.contestants = all
	for _, connections := range b.plan.connections {
		if err := b.rounds(ctx, all, connections); err != nil {
			return fmt.Errorf("%d connections: %w", connections, err)
		}
	}
	return nil
}

func (b *bench) rounds(ctx context.Context, all []*contestant, connections int) (err error) {
	for _, c := range all {
		if c.load, err = lab.Dial(c.address, connections); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		defer func() { err = errors.Join(err, c.load.Close()) }()
	}
	for n := range b.plan.warmUp + b.plan.rounds {
		for i := range all {
			if err := ctx.Err(); err != nil {
				return err
			}
			at := (i + n) % len(all) // so that nobody is always the first
			if n%2 == 1 {
				at = len(all) - 1 - at // nor always after the same one
			}
			c := all[at]
			s, err := b.turn(c.process, c.load, b.plan.slice)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			if s.Failed > 0 {
				return fmt.Errorf("%s: %d requests failed", c.name, s.Failed)
			}
			if n >= b.plan.warmUp {
				c.slices[connections] = append(c.slices[connections], s)
			}
		}
	}
	for _, c := range all {
		if c.memory[connections], err = c.process.Memory(); err != nil {
			return err
		}
	}
	return nil
}

// turn is one slice of a server.
func (b *bench) turn(p *lab.Process, load *lab.Load, length time.Duration) (lab.Slice, error) {
	from, err := b.watch.Mark()
	if err != nil {
		return lab.Slice{}, err
	}
	before, err := p.CPU()
	if err != nil {
		return lab.Slice{}, err
	}
	s, answers, err := load.Run(length)
	if err != nil {
		return lab.Slice{}, err
	}
	after, err := p.CPU()
	if err != nil {
		return lab.Slice{}, err
	}
	to, err := b.watch.Mark()
	s.CPU, s.Others = float64(after-before)/1e3/float64(answers), lab.Others(from, to)
	return s, err
}
