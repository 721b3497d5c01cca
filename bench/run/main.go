// Command run measures everything that docs/performance.md states and writes it there: the section between the two
// markers, and the plots beside it. The README gets one table of it.
//
//	go run ./bench/run [-quick] [-docs docs]
//	go run ./bench/run [-quick] [-connections 32] -a COMMAND -b COMMAND
//
// The second compares two servers only, binaries or configurations, and prints what it finds.
// It needs Linux, and Debian's nginx-light and haproxy (or the programs by these names). It builds what it measures,
// and all of that runs on loopback, on ports and in folders of its own. The whole takes twenty minutes, in which
// the machine should have nothing else to do. With -quick it takes two minutes, its figures mean little, and they go to
// the standard output alone.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	quick := flag.Bool("quick", false, "see only whether it works")
	docs := flag.String("docs", "", "the folder whose performance.md is made anew (default docs, or none with -quick)")
	a := flag.String("a", "", "a command line, see compare: what a request through it costs is measured")
	b := flag.String("b", "", "and that of the other server it is compared with, in turns")
	connections := flag.Int("connections", 0, "with -a and -b: how many (default 32, 128, and 256)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	p := whole
	if *quick {
		p = brief
	}
	do := func() error { return run(ctx, p, *quick, *docs) }
	if *a != "" || *b != "" {
		if *connections > 0 {
			p.connections = []int{*connections}
		}
		do = func() error { return compare(ctx, p, *a, *b) }
	}
	if err := do(); err != nil {
		fmt.Fprintln(os.Stderr, "run:", err)
		os.Exit(1)
	}
}

// plan is how much is measured.
type plan struct {
	slice       time.Duration
	rounds      int // slices of each contestant at each number of connections
	warmUp      int // and those before, which do not count
	connections []int
	starts      int
	idle        time.Duration // before the memory of a server at rest is read
	herd        time.Duration // one slice of the refreshing
	herds       int
	benchTime   string
	benchCount  int
	keyed       []int // devices, each with a login of its own
}

var (
	whole = plan{
		slice: time.Second, rounds: 24, warmUp: 2, connections: []int{32, 128, 256}, starts: 40, idle: 8 * time.Second,
		herd: 4 * time.Second, herds: 10, benchTime: "200ms", benchCount: 5, keyed: []int{1, 1000, 100000},
	}
	brief = plan{
		slice: 300 * time.Millisecond, rounds: 2, warmUp: 1, connections: []int{32, 128, 256}, starts: 4, idle: 4 * time.Second,
		herd: 3 * time.Second, herds: 2, benchTime: "20ms", benchCount: 1, keyed: []int{1, 1000},
	}
)

func run(ctx context.Context, p plan, quick bool, docs string) (err error) {
	began := time.Now()
	if !quick && docs == "" {
		docs = "docs"
	}
	if docs != "" { // twenty minutes later is late to find out
		if _, err := os.Stat(filepath.Join(docs, pageName)); err != nil {
			return fmt.Errorf("-docs: %w (run it in the root of the checkout)", err)
		}
	}
	folder, err := os.MkdirTemp("", "deviceflow-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	b := &bench{plan: p, folder: folder}
	defer func() { err = errors.Join(err, b.close()) }()

	r := &results{at: began, quick: quick, plan: p}
	for _, stage := range []struct {
		name string
		do   func(context.Context, *results) error
	}{
		{"building", b.build},
		{"upstream and authorization server", b.surroundings},
		{"start-up", b.startUps},
		{"requests", b.requests},
		{"refreshing under load", b.refreshing},
		{"one login per device", b.keyedSessions},
		{"in-process benchmarks", b.inProcess},
	} {
		fmt.Fprintf(os.Stderr, "%4.0f s  %s\n", time.Since(began).Seconds(), stage.name)
		if err := stage.do(ctx, r); err != nil {
			return fmt.Errorf("%s: %w", stage.name, err)
		}
	}
	r.took = time.Since(began)
	fmt.Fprintf(os.Stderr, "%4.0f s  done\n", r.took.Seconds())
	if docs == "" {
		fmt.Println(r.section())
	} else if err := r.write(docs); err != nil {
		return err
	}
	fmt.Print(r.goals())
	return nil
}
