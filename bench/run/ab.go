package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/deviceflow/caddy-deviceflow/bench/lab"
)

// compare gives two servers their slices in turn, and prints what each request costs. A side is a command line, with
// variables before it if need be:
//
//	GOGC=400 /usr/bin/caddy run --config /etc/caddy/Caddyfile
//
// It runs in a folder of its own, so paths are absolute. It finds in its environment where to listen, ADDRESS, and what is around it: UPSTREAM, an API for everybody, GUARDED,
// the same for requests with a bearer token, and ISSUER, which approves each login of the client demo-client.
func compare(ctx context.Context, p plan, a, b string) (err error) {
	folder, err := os.MkdirTemp("", "deviceflow-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	bench := &bench{plan: p, folder: folder}
	defer func() { err = errors.Join(err, bench.close()) }()
	if err := bench.surroundings(ctx, nil); err != nil {
		return err
	}
	var sides []*contestant
	for i, command := range []string{a, b} {
		c := &contestant{name: string(rune('A' + i)), slices: make(map[int][]lab.Slice), memory: make(map[int]lab.Memory)}
		if err := bench.side(c, command); err != nil {
			return fmt.Errorf("-%s: %w", strings.ToLower(c.name), err)
		}
		fmt.Printf("%s  process %d  %s\n", c.name, c.process.ID(), command)
		sides = append(sides, c)
	}
	for _, connections := range p.connections {
		if err := bench.rounds(ctx, sides, connections); err != nil {
			return err
		}
		at := func(i int) []lab.Slice { return sides[i].slices[connections] }
		for _, of := range []struct {
			name   string
			figure func(lab.Slice) float64
		}{{"µs of CPU per request", lab.CPU}, {"requests/s", lab.Throughput}, {"ms p50", lab.P50}, {"ms p99", lab.P99}} {
			ratios, dropped, calm := lab.Pairs(at(1), at(0), of.figure)
			s := lab.SpreadOf(ratios)
			fmt.Printf("%4d connections  %-22s A %9.2f  B %9.2f  B/A %.3f (%.3f–%.3f), %d pairs", connections, of.name,
				lab.SpreadOf(lab.Each(at(0), of.figure)).Mid, lab.SpreadOf(lab.Each(at(1), of.figure)).Mid, s.Mid, s.Low, s.High, len(ratios))
			switch {
			case !calm:
				fmt.Print(", the machine was not quiet")
			case dropped > 0:
				fmt.Printf(", %d disturbed ones dropped", dropped)
			}
			fmt.Println()
		}
	}
	return nil
}

// side starts one of the two.
func (b *bench) side(c *contestant, command string) (err error) {
	if c.address, err = lab.FreeAddress(); err != nil {
		return err
	}
	env := []string{"ADDRESS=" + c.address, "UPSTREAM=" + b.open, "GUARDED=" + b.guarded, "ISSUER=" + b.issuer}
	argv := strings.Fields(command)
	for len(argv) > 0 && strings.Contains(argv[0], "=") {
		env, argv = append(env, argv[0]), argv[1:]
	}
	if len(argv) == 0 {
		return errors.New("there is no command in it")
	}
	folder, err := b.place("side" + c.name)
	if err != nil {
		return err
	}
	c.process, err = b.start(folder, env, func() error { return lab.Once(c.address) }, "", "", argv...)
	return err
}
