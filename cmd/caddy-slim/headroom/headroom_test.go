package headroom

import (
	"go/parser"
	"go/token"
	"runtime"
	"testing"
)

func TestNothingComesBefore(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "headroom.go", nil, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Imports) != 0 {
		t.Errorf("%d imports would be set up first", len(f.Imports))
	}
}

func TestReleasedHeadroomIsGone(t *testing.T) {
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	if len(ballast) != 16<<20 {
		t.Errorf("there are %d bytes of headroom", len(ballast))
	}
	Release()
	if after := heap(); after+(15<<20) > before {
		t.Errorf("%d bytes before, %d after", before, after)
	}
}
