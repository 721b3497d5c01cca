package main

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
)

// function is a benchmark of `go test`.
type function struct {
	name          string
	ns, allocated []float64
	allocations   float64
}

// inProcess runs the benchmarks of the packages whose code a request goes through.
func (b *bench) inProcess(ctx context.Context, r *results) error {
	out, err := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", ".", "-benchmem",
		"-benchtime", b.plan.benchTime, "-count", strconv.Itoa(b.plan.benchCount), "./flow", "./caddymodule").CombinedOutput()
	if err != nil {
		return fmt.Errorf("go test -bench: %w\n%s", err, out)
	}
	r.functions, err = parseBenchmarks(string(out))
	return err
}

var benchmarkLine = regexp.MustCompile(`^Benchmark(\S+?)(?:-\d+)?\s+\d+\s+([\d.e+]+) ns/op.*?\s([\d.]+) B/op\s+([\d.]+) allocs/op`)

// parseBenchmarks puts the runs of each benchmark together, in the order of the first.
func parseBenchmarks(out string) ([]*function, error) {
	var all []*function
	byName := make(map[string]*function)
	for line := range strings.Lines(out) {
		m := benchmarkLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		f := byName[m[1]]
		if f == nil {
			f = &function{name: m[1]}
			byName[m[1]] = f
			all = append(all, f)
		}
		var numbers [3]float64
		for i := range numbers {
			n, err := strconv.ParseFloat(m[2+i], 64)
			if err != nil {
				return nil, fmt.Errorf("cannot read %q: %w", line, err)
			}
			numbers[i] = n
		}
		f.ns, f.allocated, f.allocations = append(f.ns, numbers[0]), append(f.allocated, numbers[1]), numbers[2]
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("go test has run no benchmarks:\n%s", out)
	}
	return all, nil
}
