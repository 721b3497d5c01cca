package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
)

// machine is what the figures depend on.
type machine struct {
	processor, kernel, caddy, nginx, haproxy, commit string
	memory                                           float64 // GiB
}

func (m *machine) read(ctx context.Context) error {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return err
	}
	m.processor = "unknown processor"
	for line := range strings.Lines(string(info)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			m.processor = strings.TrimSpace(value)
			break
		}
	}
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return err
	}
	m.kernel, _, _ = strings.Cut(strings.TrimSpace(string(kernel)), "-")
	mem, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return err
	}
	var kib float64
	if _, err := fmt.Sscanf(string(mem), "MemTotal: %f kB", &kib); err != nil {
		return fmt.Errorf("/proc/meminfo: %w", err)
	}
	m.memory = kib / (1 << 20)
	// Each says its version in a line that ends or begins with it; nginx on the standard error.
	for _, one := range []struct {
		into *string
		argv []string
		cut  string
	}{
		{&m.caddy, []string{"go", "list", "-m", "-f", "{{.Version}}", "github.com/caddyserver/caddy/v2"}, ""},
		{&m.nginx, []string{"nginx", "-v"}, "nginx/"},
		{&m.haproxy, []string{"haproxy", "-v"}, "version "},
	} {
		out, err := exec.CommandContext(ctx, one.argv[0], one.argv[1:]...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w (Debian has nginx-light and haproxy)\n%s", one.argv[0], err, out)
		}
		line, _, _ := strings.Cut(string(out), "\n")
		_, line, _ = strings.Cut(line, one.cut)
		*one.into, _, _ = strings.Cut(line, " ")
		*one.into, _, _ = strings.Cut(*one.into, "-")
	}
	// A checkout without Git has no commit to state.
	if out, err := exec.CommandContext(ctx, "git", "rev-parse", "--short=10", "HEAD").Output(); err == nil {
		m.commit = strings.TrimSpace(string(out))
	}
	return nil
}

func (m *machine) String() string {
	s := fmt.Sprintf("%d × %s, %.0f GiB, Linux %s, %s, Caddy %s, nginx %s, HAProxy %s",
		runtime.NumCPU(), m.processor, m.memory, m.kernel, strings.Replace(runtime.Version(), "go", "Go ", 1), m.caddy, m.nginx, m.haproxy)
	if m.commit != "" {
		s += ", commit " + m.commit
	}
	return s
}
