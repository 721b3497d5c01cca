package lab

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Process is a server under measurement, or one that the measurement needs.
type Process struct {
	cmd   *exec.Cmd
	log   string
	ended chan struct{}
	err   error
	pids  []int
}

// Start runs a program in a folder of its own, which is its home, too. What it writes goes to a file there. GOGC and
// GOMEMLIMIT come from env alone, whatever whoever measures has set.
func Start(folder string, env []string, argv ...string) (*Process, error) {
	p := &Process{cmd: exec.Command(argv[0], argv[1:]...), log: filepath.Join(folder, "log"), ended: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = folder, log, log
	for _, e := range os.Environ() {
		if name, _, _ := strings.Cut(e, "="); name != "GOGC" && name != "GOMEMLIMIT" {
			p.cmd.Env = append(p.cmd.Env, e)
		}
	}
	p.cmd.Env = append(p.cmd.Env, "HOME="+folder, "XDG_DATA_HOME="+folder, "XDG_CONFIG_HOME="+folder)
	p.cmd.Env = append(p.cmd.Env, env...)
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	p.pids = []int{p.cmd.Process.Pid}
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// ID is that of the process, for a profiler.
func (p *Process) ID() int { return p.cmd.Process.Pid }

// Stop ends the process and waits for it; after ten seconds, by force. An end by the signal is a good one.
func (p *Process) Stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // what matters comes from Wait
	select {
	case <-p.ended:
	case <-time.After(10 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.ended
		return p.fail("had to be killed")
	}
	if exit, ok := errors.AsType[*exec.ExitError](p.err); ok {
		if s, ok := exit.Sys().(syscall.WaitStatus); ok && (s.Signal() == syscall.SIGTERM || s.ExitStatus() == 128+int(syscall.SIGTERM)) {
			return nil // it had not come to catching signals yet, or says so in its own way
		}
		return p.fail(p.err.Error())
	}
	return p.err
}

// fail is an error with the last of what the process has said.
func (p *Process) fail(what string) error {
	said, _ := os.ReadFile(p.log) // without it, what has happened is still the news
	if len(said) > 2000 {
		said = said[len(said)-2000:]
	}
	return fmt.Errorf("%s: %s\n%s", filepath.Base(p.cmd.Path), what, said)
}

// Ready waits until probe is content, and counts the workers that have been started by then as part of the process.
func (p *Process) Ready(limit time.Duration, probe func() error) error {
	var err error
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		select {
		case <-p.ended:
			return p.fail("ended by itself")
		default:
		}
		if err = probe(); err == nil {
			workers, err := children(p.cmd.Process.Pid)
			p.pids = append(p.pids, workers...)
			return err
		}
	}
	return p.fail(fmt.Sprintf("not ready within %v: %v", limit, err))
}

// CPU is the processor time that the process and its workers have had.
func (p *Process) CPU() (time.Duration, error) {
	var sum time.Duration
	for _, pid := range p.pids {
		d, err := processCPU(pid)
		if err != nil {
			return 0, err
		}
		sum += d
	}
	return sum, nil
}

// Memory is that of the process and its workers.
func (p *Process) Memory() (Memory, error) {
	var sum Memory
	for _, pid := range p.pids {
		m, err := memory(pid)
		if err != nil {
			return Memory{}, err
		}
		sum.Own += m.Own
		sum.RSS += m.RSS
	}
	return sum, nil
}

// Watch tells how much of the machine is used by others than these processes and this one.
type Watch struct{ processes []*Process }

// Add counts p as one of ours.
func (w *Watch) Add(p *Process) { w.processes = append(w.processes, p) }

// Mark is a moment of a Watch.
type Mark struct {
	at         time.Time
	busy, ours time.Duration
}

// Mark reads the accounting.
func (w *Watch) Mark() (Mark, error) {
	ours, err := processCPU(os.Getpid())
	if err != nil {
		return Mark{}, err
	}
	for _, p := range w.processes {
		d, err := p.CPU()
		if err != nil {
			return Mark{}, err
		}
		ours += d
	}
	busy, err := machineBusy()
	return Mark{time.Now(), busy, ours}, err
}

// Others is their share of the machine between two marks, from 0 to 1. Steal is theirs.
func Others(from, to Mark) float64 {
	capacity := to.at.Sub(from.at) * time.Duration(runtime.NumCPU())
	theirs := (to.busy - from.busy) - (to.ours - from.ours)
	return max(0, float64(theirs)/float64(capacity))
}

// FreeAddress is one on loopback that nothing listens on.
func FreeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
