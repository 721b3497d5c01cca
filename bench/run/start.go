package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/deviceflow/caddy-deviceflow/bench/lab"
)

// starter is a build in the table of start-ups.
type starter struct {
	name, binary, folder, address string
	took                          []float64 // ms from the start of the process to the first 200
	idle                          []lab.Memory
}

// startUps measures how soon after its start each build gives its first answer, in turns: Caddy one of a plain
// reverse_proxy, ours one with the token of a login that lies on disk. Then, what they need at rest.
func (b *bench) startUps(ctx context.Context, r *results) error {
	builds := []*starter{
		{name: "Caddy", binary: b.stock},
		{name: "device_flow", binary: b.full},
		{name: "device_flow, slim", binary: b.slim},
	}
	r.builds = builds
	for i, s := range builds {
		var err error
		if s.folder, err = b.place(fmt.Sprint("start", i)); err != nil {
			return err
		}
		if s.address, err = lab.FreeAddress(); err != nil {
			return err
		}
		directive := "reverse_proxy " + b.open
		if i > 0 {
			directive = deviceFlow(b.guarded, b.issuer)
		}
		if err := os.WriteFile(filepath.Join(s.folder, "Caddyfile"), []byte(caddyfile(s.address, directive)), 0o600); err != nil {
			return err
		}
		// Not measured: it logs in, and the files are in the page cache after it.
		if _, err := s.start(30 * time.Second); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	for n := range b.plan.starts {
		for i := range builds {
			if err := ctx.Err(); err != nil {
				return err
			}
			s := builds[(i+n)%len(builds)]
			took, err := s.start(5 * time.Second)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			s.took = append(s.took, lab.Milliseconds(took))
		}
	}
	for range 3 {
		if err := b.rest(ctx, builds); err != nil {
			return err
		}
	}
	return nil
}

// start runs the build until its first good answer. A login takes seconds, so that one from disk can be told from it.
func (s *starter) start(limit time.Duration) (took time.Duration, err error) {
	began := time.Now()
	p, err := lab.Start(s.folder, nil, runCaddy(s.binary)...)
	if err != nil {
		return 0, err
	}
	for {
		if err = lab.Once(s.address); err == nil {
			took = time.Since(began)
			return took, p.Stop()
		}
		if time.Since(began) > limit {
			return 0, errors.Join(fmt.Errorf("no answer within %v: %w", limit, err), p.Stop())
		}
		time.Sleep(300 * time.Microsecond)
	}
}

// rest reads the memory of all builds, a while after their first answer.
func (b *bench) rest(ctx context.Context, builds []*starter) (err error) {
	var running []*lab.Process
	for _, s := range builds {
		p, err := lab.Start(s.folder, nil, runCaddy(s.binary)...)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, p.Stop()) }()
		if err := p.Ready(10*time.Second, func() error { return lab.Once(s.address) }); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		running = append(running, p)
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(b.plan.idle):
	}
	for i, p := range running {
		m, err := p.Memory()
		if err != nil {
			return err
		}
		builds[i].idle = append(builds[i].idle, m)
	}
	return nil
}
