package headroom

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// flags are what the kernel has noted about the memory at an address.
func flags(t *testing.T, address uintptr) []string {
	t.Helper()
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	here := false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var from, to uintptr
		if n, _ := fmt.Sscanf(lines.Text(), "%x-%x ", &from, &to); n == 2 {
			here = from <= address && address < to
		}
		if found, ok := strings.CutPrefix(lines.Text(), "VmFlags:"); ok && here {
			return strings.Fields(found)
		}
	}
	t.Fatalf("there is no memory at %#x", address)
	return nil
}

// requireHugePages requires that the kernel has been asked for huge pages, or told to make no more.
func requireHugePages(t *testing.T, asked bool) {
	t.Helper()
	if _, err := os.Stat("/sys/kernel/mm/transparent_hugepage"); err != nil {
		t.Log("this kernel has none")
		return
	}
	if pages.address%hugePage != 0 {
		t.Errorf("%#x is no place for a huge page", pages.address)
	}
	got := flags(t, pages.address)
	if slices.Contains(got, "hg") != asked || slices.Contains(got, "nh") == asked {
		t.Errorf("asked for: %t; the flags are %q", asked, got)
	}
}
