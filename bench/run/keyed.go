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

const keyedConnections = 32

// crowd is a Caddy in which so many devices have a login of their own.
type crowd struct {
	devices int
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
		if processes[i], loads[i], err = b.crowd(ctx, c); err != nil {
			return fmt.Errorf("%d devices: %w", devices, err)
		}
		r.crowds = append(r.crowds, c)
	}
	for n := range b.plan.warmUp + b.plan.rounds {
		for i := range r.crowds {
			if err := ctx.Err(); err != nil {
				return err
			}
			at := (i + n) % len(r.crowds)
			s, err := b.turn(processes[at], loads[at], b.plan.slice)
			if err == nil && s.Failed > 0 {
				err = fmt.Errorf("%d requests failed", s.Failed)
			}
			if err != nil {
				return fmt.Errorf("%d devices: %w", r.crowds[at].devices, err)
			}
			if n >= b.plan.warmUp {
				r.crowds[at].slices = append(r.crowds[at].slices, s)
			}
		}
	}
	return nil
}

// crowd starts a Caddy and brings its devices into memory: the first logs in, and its stored login is copied for the
// others, since an authorization server would take an hour for them.
func (b *bench) crowd(ctx context.Context, c *crowd) (*lab.Process, *lab.Load, error) {
	folder, err := b.place(fmt.Sprint("crowd", c.devices))
	if err != nil {
		return nil, nil, err
	}
	address, err := lab.FreeAddress()
	if err != nil {
		return nil, nil, err
	}
	header := make([]string, c.devices)
	for i := range header {
		header[i] = fmt.Sprint("X-Device-Id: device-", i)
	}
	site := caddyfile(address, deviceFlow(b.guarded, b.issuer, "session_key {header.X-Device-Id}", fmt.Sprint("max_sessions ", c.devices)))
	p, err := b.start(folder, nil, func() error { return lab.Once(address, header[0]) }, "Caddyfile", site, runCaddy(b.full)...)
	if err != nil {
		return nil, nil, err
	}
	if err := copyLogin(filepath.Join(folder, "caddy", "device_flow"), c.devices); err != nil {
		return nil, nil, err
	}
	load, err := lab.Dial(address, keyedConnections, header...)
	if err != nil {
		return nil, nil, err
	}
	b.stops = append(b.stops, load.Close)
	began := time.Now()
	for range 3 { // a device that comes while its record is read may be told to come again
		var failed int
		if failed, err = load.All(ctx); err == nil && failed == 0 {
			c.loaded = time.Since(began)
			select {
			case <-ctx.Done():
				return nil, nil, ctx.Err()
			case <-time.After(b.plan.idle):
			}
			c.memory, err = p.Memory()
			return p, load, err
		}
		err = errors.Join(err, fmt.Errorf("%d devices have no token", failed))
	}
	return nil, nil, err
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
