package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// tick is how the kernel counts in /proc/stat: USER_HZ is 100 on every Linux.
const tick = 10 * time.Millisecond

// processCPU is the processor time that the threads of a process have had, to the nanosecond. /proc/<pid>/stat would
// round it to 10 ms, which is much for a second of a frugal server. What a thread had that has ended is lost; none of
// the servers here ends any under load.
func processCPU(pid int) (time.Duration, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(files) == 0 {
		return 0, fmt.Errorf("no accounting of process %d: %w", pid, errors.Join(err, fs.ErrNotExist))
	}
	var sum time.Duration
	for _, file := range files {
		b, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the thread has just ended
		}
		if err != nil {
			return 0, err
		}
		d, err := parseSchedstat(b)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", file, err)
		}
		sum += d
	}
	return sum, nil
}

// parseSchedstat reads the first of "time on the processor in ns, time waiting for it, times it was given it".
func parseSchedstat(b []byte) (time.Duration, error) {
	first, _, _ := bytes.Cut(b, []byte(" "))
	ns, err := strconv.ParseInt(string(first), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("cannot read the accounting of the kernel: %q", b)
	}
	return time.Duration(ns), nil
}

// machineBusy is the time that the machine's processors have not been idle, everybody together. What the hypervisor has
// given to others counts as well.
func machineBusy() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	return parseStat(b)
}

// parseStat reads the line "cpu user nice system idle iowait irq softirq steal guest guest_nice", in ticks. The guests'
// time is in user's already.
func parseStat(b []byte) (time.Duration, error) {
	line, _, _ := bytes.Cut(b, []byte("\n"))
	fields := strings.Fields(string(line))
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0, fmt.Errorf("cannot read /proc/stat: %q", line)
	}
	var ticks int64
	for i, f := range fields[1:9] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("cannot read /proc/stat: %q", line)
		}
		if i != 3 && i != 4 { // idle, and waiting for a disk
			ticks += n
		}
	}
	return time.Duration(ticks) * tick, nil
}

// children of a process, such as the workers of nginx.
func children(pid int) ([]int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil, err
	}
	var out []int
	for f := range strings.FieldsSeq(string(b)) {
		n, err := strconv.Atoi(f)
		if err != nil {
			return nil, fmt.Errorf("cannot read the children of process %d: %q", pid, b)
		}
		out = append(out, n)
	}
	return out, nil
}

// Memory of a process in MiB.
type Memory struct {
	Own float64 // anonymous, its own alone: heap, stacks and data. What swapping or a memory limit has to carry
	RSS float64 // with the pages of the binary that were touched, which the kernel can drop and read again
}

// memory reads /proc/<pid>/smaps_rollup.
func memory(pid int) (Memory, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return Memory{}, err
	}
	return parseRollup(b)
}

func parseRollup(b []byte) (Memory, error) {
	kib := make(map[string]float64)
	for line := range strings.Lines(string(b)) {
		name, rest, _ := strings.Cut(line, ":")
		if f := strings.Fields(rest); len(f) == 2 && f[1] == "kB" {
			n, err := strconv.ParseFloat(f[0], 64)
			if err != nil {
				return Memory{}, fmt.Errorf("cannot read smaps_rollup: %q", line)
			}
			kib[name] = n
		}
	}
	own, ok1 := kib["Pss_Anon"]
	rss, ok2 := kib["Rss"]
	if !ok1 || !ok2 {
		return Memory{}, errors.New("smaps_rollup has no Pss_Anon and Rss: it needs Linux 5.4")
	}
	return Memory{Own: own / 1024, RSS: rss / 1024}, nil
}
