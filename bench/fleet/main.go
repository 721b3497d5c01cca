// Command fleet simulates how many proxies together behave towards one
// authorization server, and writes what it sees into docs/fleets.md and
// docs/fleets/*.svg.
//
//	go run ./bench/fleet
//
// What a proxy decides is decided by package flow/schedule, as in the engine. One
// seed gives one result on any machine.
package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
)

const (
	page     = "docs/fleets.md"
	pictures = "docs/fleets"
	begin    = "<!-- begin: written by go run ./bench/fleet -->\n"
	end      = "<!-- end -->\n"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "fleet:", err)
		os.Exit(1)
	}
}

func run() error {
	text, err := os.ReadFile(page)
	if err != nil {
		return fmt.Errorf("start this in the repository's root: %w", err)
	}
	before, rest, ok := bytes.Cut(text, []byte(begin))
	_, after, closed := bytes.Cut(rest, []byte(end))
	if !ok || !closed {
		return fmt.Errorf("%s has lost the two comments that the tables stand between", page)
	}
	var out bytes.Buffer
	out.Write(before)
	out.WriteString(begin)
	report(&out)
	out.WriteString(end)
	out.Write(after)
	if err := os.MkdirAll(pictures, 0o755); err != nil {
		return err
	}
	for name, p := range plots() {
		var b bytes.Buffer
		p.write(&b)
		if err := os.WriteFile(filepath.Join(pictures, name), b.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(page, out.Bytes(), 0o644)
}
