package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/deviceflow/caddy-deviceflow/bench/lab"
)

const (
	pageName = "performance.md"
	plotsDir = "performance"
	begins   = "<!-- measured: what follows is written by go run ./bench/run -->\n"
	ends     = "<!-- measured: up to here -->\n"
)

// write puts the section into the page, the plots beside it, and a summary into the README above.
func (r *results) write(docs string) error {
	if err := edit(filepath.Join(docs, pageName), r.section()); err != nil {
		return err
	}
	if err := edit(filepath.Join(docs, "..", "README.md"), r.summary()); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(docs, plotsDir), 0o755); err != nil {
		return err
	}
	for file, plot := range r.plots() {
		if err := os.WriteFile(filepath.Join(docs, plotsDir, file), []byte(plot), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// edit replaces what stands between the markers of a page.
func edit(name, section string) error {
	page, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if page, err = replaceSection(page, section); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return os.WriteFile(name, page, 0o644)
}

// replaceSection leaves everything outside of the markers as it is.
func replaceSection(page []byte, section string) ([]byte, error) {
	before, rest, ok1 := bytes.Cut(page, []byte(begins))
	_, after, ok2 := bytes.Cut(rest, []byte(ends))
	if !ok1 || !ok2 {
		return nil, fmt.Errorf("has no markers to write between: put the lines %q and %q where the tables belong", begins, ends)
	}
	return slices.Concat(before, []byte(begins), []byte(section), []byte(ends), after), nil
}

// section is the text between the markers.
func (r *results) section() string {
	var out strings.Builder
	disturbed, all, others := r.disturbed()
	fmt.Fprintf(&out, "\nMeasured on %s: %s. It took %.0f minutes.\n", r.at.UTC().Format("2 January 2006"), &r.machine, r.took.Minutes())
	fmt.Fprintf(&out, "In %d of %d slices others had more than %.0f %% of the machine (median of all: %.0f %%); these do not count.\n",
		disturbed, all, 100*lab.Disturbed, 100*others)
	if 3*(all-disturbed) < all {
		out.WriteString("**The machine was not quiet, so all of them do count here: take the figures as rough.**\n")
	}
	r.requestTables(&out)
	r.startTable(&out)
	r.refreshTable(&out)
	r.crowdTable(&out)
	r.functionTable(&out)
	return out.String()
}

// summary is the one table that the README has.
func (r *results) summary() string {
	var out strings.Builder
	out.WriteString("\n| CPU per request, plain Caddy = 1 |")
	for _, connections := range r.plan.connections {
		fmt.Fprintf(&out, " %d connections |", connections)
	}
	out.WriteString("\n|---|" + strings.Repeat("--:|", len(r.plan.connections)) + "\n")
	for _, c := range r.contestants {
		fmt.Fprintf(&out, "| %s |", strings.ReplaceAll(c.name, oursName, "**"+oursName+"**"))
		for _, connections := range r.plan.connections {
			cpu, _, _ := r.against(c, connections, lab.CPU)
			fmt.Fprintf(&out, " %.2f |", cpu.Mid)
		}
		out.WriteString("\n")
	}
	fmt.Fprintf(&out, "\nMeasured on %s: %s.\n\n", r.at.UTC().Format("2 January 2006"), &r.machine)
	return out.String()
}

func (r *results) requestTables(out *strings.Builder) {
	out.WriteString("\n### Requests\n\n")
	fmt.Fprintf(out, "%d slices of %v each, in turns. The ratios are to the plain Caddy's slice of the same turn: median, and in brackets the quartiles.\n", r.plan.rounds, r.plan.slice)
	out.WriteString("Memory is the server's own (anonymous) after the last slice.\n")
	fmt.Fprintf(out, "\n![CPU per request](%s/cpu.svg)\n", plotsDir)
	for _, connections := range r.plan.connections {
		fmt.Fprintf(out, "\n%d connections:\n\n", connections)
		out.WriteString("| | CPU per request | of plain Caddy's | requests/s | of plain Caddy's | p50 | p99 | memory | pairs |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|\n")
		for _, c := range r.contestants {
			kept, _ := lab.Quiet(c.slices[connections])
			mid := func(of func(lab.Slice) float64) float64 { return lab.SpreadOf(lab.Each(kept, of)).Mid }
			cpu, dropped, _ := r.against(c, connections, lab.CPU)
			rate, _, _ := r.against(c, connections, lab.Throughput)
			fmt.Fprintf(out, "| %s | %.1f µs | %s | %.0f | %s | %.2f ms | %.2f ms | %.0f MiB | %d |\n",
				strings.ReplaceAll(c.name, oursName, "**"+oursName+"**"), mid(lab.CPU), ratio(cpu), mid(lab.Throughput), ratio(rate), mid(lab.P50), mid(lab.P99),
				c.memory[connections].Own, len(c.slices[connections])-dropped)
		}
	}
}

func ratio(s lab.Spread) string { return fmt.Sprintf("%.2f (%.2f–%.2f)", s.Mid, s.Low, s.High) }

func (r *results) startTable(out *strings.Builder) {
	out.WriteString("\n### Start, size, and memory at rest\n\n")
	fmt.Fprintf(out, "%d starts of each, in turns, from the start of the process to the first 200: of a plain `reverse_proxy`, and of\n", r.plan.starts)
	fmt.Fprintf(out, "`device_flow` with a stored login, where the API wants the token. Memory %v later, without a call since.\n", r.plan.idle)
	fmt.Fprintf(out, "\n![Start](%s/start.svg)\n\n", plotsDir)
	out.WriteString("| build | first answer | of plain Caddy's | binary | own memory | of plain Caddy's | with the binary's pages |\n|---|--:|--:|--:|--:|--:|--:|\n")
	for i, s := range r.builds {
		fmt.Fprintf(out, "| %s | %.1f ms | %s | %.1f MB | %.1f MiB | %.2f | %.0f MiB |\n", s.name, lab.SpreadOf(s.took).Mid, ratio(r.startRatio(i)),
			r.sizes[i], ownAtRest(s), ownAtRest(s)/ownAtRest(r.builds[0]), rssAtRest(s))
	}
}

func (r *results) refreshTable(out *strings.Builder) {
	out.WriteString("\n### Refreshing under load\n\n")
	fmt.Fprintf(out, "%d connections, %d slices of %v; where it says so, the token is refreshed every two seconds, at a token endpoint that takes %v.\n",
		herdConnections, r.plan.herds, r.plan.herd, endpointDelay)
	fmt.Fprintf(out, "\n![Latency while tokens are refreshed](%s/refresh.svg)\n\n", plotsDir)
	out.WriteString("| | p50 | p99 | p99.9 | p99.9 against no refreshing |\n|---|--:|--:|--:|--:|\n")
	for i, h := range r.herders {
		kept, _ := lab.Quiet(h.slices)
		mid := func(of func(lab.Slice) float64) float64 { return lab.SpreadOf(lab.Each(kept, of)).Mid }
		against := "–"
		if i%2 == 1 {
			s, _, _ := r.herdRatio(i, i-1)
			against = ratio(s)
		}
		fmt.Fprintf(out, "| %s | %.2f ms | %.2f ms | %.2f ms | %s |\n", h.name, mid(lab.P50), mid(lab.P99), mid(lab.P999), against)
	}
}

func (r *results) crowdTable(out *strings.Builder) {
	out.WriteString("\n### One login per device\n\n")
	fmt.Fprintf(out, "`session_key` with so many devices, each with its own stored login, that call one after the other over %d connections;\n", keyedConnections)
	fmt.Fprintf(out, "%d times %d slices of %v each. The mean has all slices, those in which the garbage collector marks the sessions, too.\n", stretches, r.plan.rounds, r.plan.slice)
	out.WriteString("Memory when all have called once, before the load; in memory: how long that first round took.\n\n")
	out.WriteString("| devices | CPU per request | more than with one | mean | p50 | p99 | memory | per device | in memory after |\n|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for i, c := range r.crowds {
		kept, _ := lab.Quiet(c.slices)
		mid := func(of func(lab.Slice) float64) float64 { return lab.SpreadOf(lab.Each(kept, of)).Mid }
		more, each := "–", "–"
		if i > 0 {
			cpu, kib := r.perDevice(i)
			more, each = fmt.Sprintf("%+.1f µs (%+.1f – %+.1f)", cpu.Mid, cpu.Low, cpu.High), fmt.Sprintf("%.1f KiB", kib)
		}
		fmt.Fprintf(out, "| %d | %.1f µs | %s | %.1f µs | %.2f ms | %.2f ms | %.0f MiB | %s | %.1f s |\n", c.devices, mid(lab.CPU), more, c.mean(), mid(lab.P50), mid(lab.P99),
			c.memory.Own, each, c.loaded.Seconds())
	}
}

func (r *results) functionTable(out *strings.Builder) {
	out.WriteString("\n### In the process\n\n")
	fmt.Fprintf(out, "`go test -bench`, medians of %d runs of %s.\n\n", r.plan.benchCount, r.plan.benchTime)
	out.WriteString("| benchmark | time | allocated | allocations |\n|---|--:|--:|--:|\n")
	for _, f := range r.functions {
		fmt.Fprintf(out, "| %s | %s | %.0f B | %.0f |\n", f.name, nanoseconds(lab.SpreadOf(f.ns).Mid), lab.SpreadOf(f.allocated).Mid, f.allocations)
	}
	out.WriteString("\n")
}

func nanoseconds(ns float64) string {
	switch {
	case ns < 10:
		return fmt.Sprintf("%.1f ns", ns)
	case ns < 10e3:
		return fmt.Sprintf("%.0f ns", ns)
	}
	return fmt.Sprintf("%.1f µs", ns/float64(time.Microsecond))
}

// plots are the pictures by the names of their files.
func (r *results) plots() map[string]string {
	cpu := lab.Bars{Title: "CPU time per request, against a plain Caddy that adds nothing", Unit: "", Format: "%.2f", Line: 1}
	for _, connections := range r.plan.connections {
		g := lab.Group{Name: fmt.Sprintf("%d connections", connections)}
		for _, c := range r.contestants {
			s, _, _ := r.against(c, connections, lab.CPU)
			g.Bars = append(g.Bars, lab.Bar{Name: strings.ReplaceAll(c.name, "`", ""), Value: s, Ours: strings.HasPrefix(c.name, oursName)})
		}
		cpu.Groups = append(cpu.Groups, g)
	}
	start := lab.Bars{Title: "From the start of the process to the first answer", Unit: "ms", Format: "%.0f"}
	rest := lab.Group{}
	for _, s := range r.builds {
		rest.Bars = append(rest.Bars, lab.Bar{Name: s.name, Value: lab.SpreadOf(s.took), Ours: strings.HasPrefix(s.name, oursName)})
	}
	start.Groups = []lab.Group{rest}
	refresh := lab.Bars{Title: fmt.Sprintf("p99.9 of %d callers, token endpoint %v", herdConnections, endpointDelay), Unit: "ms", Format: "%.1f"}
	g := lab.Group{}
	for _, h := range r.herders {
		kept, _ := lab.Quiet(h.slices)
		g.Bars = append(g.Bars, lab.Bar{Name: h.name, Value: lab.SpreadOf(lab.Each(kept, lab.P999)), Ours: strings.HasPrefix(h.name, oursName)})
	}
	refresh.Groups = []lab.Group{g}
	return map[string]string{"cpu.svg": cpu.SVG(), "start.svg": start.SVG(), "refresh.svg": refresh.SVG()}
}
