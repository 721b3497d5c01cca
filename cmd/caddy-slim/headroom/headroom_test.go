package headroom

import (
	"go/parser"
	"go/token"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

func TestLittleComesBefore(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) < 3 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range f.Imports {
			if !slices.Contains([]string{`"runtime"`, `"syscall"`, `"unsafe"`}, i.Path.Value) {
				t.Errorf("%s: %s would be set up first", file, i.Path.Value)
			}
		}
	}
}

func TestThereIsHeadroomUntilItIsReleased(t *testing.T) {
	if ballast == nil {
		t.Log("an earlier repetition has released it")
		return
	}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	if len(ballast) <= 12<<20 {
		t.Errorf("there are %d bytes of headroom", len(ballast))
	}
	if runtime.MemProfileRate != 0 {
		t.Error("the start is profiled")
	}
	requireHugePages(t, true)
	Release()
	if after := heap(); after+(12<<20) > before {
		t.Errorf("%d bytes before, %d after", before, after)
	}
	if runtime.MemProfileRate == 0 {
		t.Error("there is no memory profile any more")
	}
	requireHugePages(t, false)
}

func TestTheStartTakesOneCore(t *testing.T) {
	if n := runtime.GOMAXPROCS(0); n != 1 || Cores < 1 {
		t.Errorf("it takes %d of %d", n, Cores)
	}
}
