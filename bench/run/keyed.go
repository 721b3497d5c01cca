package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/deviceflow/caddy-deviceflow/bench/lab"
)

const (
	keyedConnections = 32
	// stretches is how often each crowd has a turn. They are long, as the garbage collector takes a dozen seconds of load
	// for a round, and between the turns it would work at nobody's expense.
	stretches = 2
)

// crowd is a Caddy in which so many devices have a login of their own.
type crowd struct {
	devices int
	address string
	header  []string      // of the devices
	loaded  time.Duration // until all of them were in memory
	memory  lab.Memory
	slices  []lab.Slice
}

// keyedSessions measures what a request costs when each device has a session of its own, by how many there are.
func (b *bench) keyedSessions(ctx context.Context, r *results) error {
	processes, loads := make([]*lab.Process, len(b.plan.keyed)), make([]*lab.Load, len(b.plan.keyed))
	for i, devices := range b.plan.keyed {
		c := &crowd{devices: devices}
		var err error
		if processes[i], err = b.crowd(ctx, c); err != nil {
			return fmt.Errorf("%d devices: %w", devices, err)
		}
		r.crowds = append(r.crowds, c)
	}
	// Only now: to bring the last into memory takes minutes, and a server closes a connection that asks for nothing.
	for i, c := range r.crowds {
		var err error
		if loads[i], err = lab.Dial(c.address, keyedConnections, c.header...); err != nil {
			return err
		}
		b.stops = append(b.stops, loads[i].Close)
		if err := b.settle(ctx, processes[i], loads[i]); err != nil {
			return err
		}
	}
	for n := range stretches {
		for i := range r.crowds {
			at := (i + n) % len(r.crowds)
			if err := b.stretch(ctx, r.crowds[at], processes[at], loads[at]); err != nil {
				return fmt.Errorf("%d devices: %w", r.crowds[at].devices, err)
			}
		}
	}
	return nil
}

// stretch is one turn of a crowd.
func (b *bench) stretch(ctx context.Context, c *crowd, p *lab.Process, load *lab.Load) error {
	for n := range b.plan.warmUp + b.plan.rounds {
		if err := ctx.Err(); err != nil {
			return err
		}
		s, err := b.turn(p, load, b.plan.slice)
		if err != nil {
			return err
		}
		if s.Failed > 0 {
			return fmt.Errorf("%d requests failed", s.Failed)
		}
		if n >= b.plan.warmUp {
			c.slices = append(c.slices, s)
		}
	}
	return nil
}

// mean is what a request costs in µs, those included during which the garbage collector works.
func (c *crowd) mean() float64 {
	var cpu, answers float64
	for _, s := range c.slices {
		n := s.Throughput * s.Length.Seconds()
		cpu, answers = cpu+s.CPU*n, answers+n
	}
	return cpu / answers
}

// settle calls until the memory of the process has stopped growing: the heap of so many sessions takes a while to
// reach the size that it keeps, and memory that is used for the first time costs more than the call.
func (b *bench) settle(ctx context.Context, p *lab.Process, load *lab.Load) error {
	var had float64
	for range 60 {
		m, err := p.Memory()
		if err != nil {
			return err
		}
		if m.Own < had*1.01 {
			break
		}
		had = m.Own
		for range 5 {
			if err := ctx.Err(); err != nil {
				return err
			}
			if _, _, err := load.Run(b.plan.slice); err != nil {
				return err
			}
		}
	}
	return nil
}

// crowd starts a Caddy and brings its devices into memory: the first logs in, and its stored login is copied for the
// others, since an authorization server would take an hour for them.
func (b *bench) crowd(ctx context.Context, c *crowd) (*lab.Process, error) {
	folder, err := b.place(fmt.Sprint("crowd", c.devices))
	if err != nil {
		return nil, err
	}
	if c.address, err = lab.FreeAddress(); err != nil {
		return nil, err
	}
	c.header = make([]string, c.devices)
	for i := range c.header {
		c.header[i] = fmt.Sprint("X-Device-Id: device-", i)
	}
	site := caddyfile(c.address, deviceFlow(b.guarded, b.issuer, "session_key {header.X-Device-Id}", fmt.Sprint("max_sessions ", c.devices)))
	p, err := b.start(folder, nil, func() error { return lab.Once(c.address, c.header[0]) }, "Caddyfile", site, runCaddy(b.full)...)
	if err != nil {
		return nil, err
	}
	if err := copyLogin(filepath.Join(folder, "caddy", "device_flow"), c.devices); err != nil {
		return nil, err
	}
	load, err := lab.Dial(c.address, keyedConnections, c.header...)
	if err != nil {
		return nil, err
	}
	defer load.Close()
	began := time.Now()
	for range 3 { // a device that comes while its record is read may be told to come again
		var failed int
		if failed, err = load.All(ctx); err == nil && failed == 0 {
			c.loaded = time.Since(began)
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(b.plan.idle):
			}
			c.memory, err = p.Memory()
			return p, err
		}
		err = errors.Join(err, fmt.Errorf("%d devices have no token", failed))
	}
	return nil, err
}

// copyLogin gives the other devices the record of the first. The names are those of caddymodule/keyed.go; with a wrong
// one, a device has no token, and the measurement ends.
func copyLogin(storage string, devices int) error {
	records, err := filepath.Glob(filepath.Join(storage, "*~*.json"))
	if err != nil || len(records) != 1 {
		return fmt.Errorf("%d records of the first device in %s: %w", len(records), storage, err)
	}
	record, err := os.ReadFile(records[0])
	if err != nil {
		return err
	}
	base, rest, _ := strings.Cut(filepath.Base(records[0]), "~")
	_, fingerprint, _ := strings.Cut(rest, "-")
	kind := rest[:8]
	for i := 1; i < devices; i++ {
		id := sha256.Sum256([]byte("{http.request.header.X-Device-Id}\x00" + fmt.Sprint("device-", i)))
		name := base + "~" + kind + hex.EncodeToString(id[:12]) + "-" + fingerprint
		if err := os.WriteFile(filepath.Join(storage, name), record, 0o600); err != nil {
			return err
		}
	}
	return nil
}
