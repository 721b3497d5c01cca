package flow

import (
	"net/http"
	"testing"
	"time"
)

// readyDerived is a handle with a token and without an owner.
func readyDerived(tb testing.TB) (*Session, *Derived) {
	s := readySession(tb)
	src, err := s.For(Want{Audience: "https://api.example"})
	if err != nil {
		tb.Fatal(err)
	}
	d := src.(*Derived)
	sl := s.slotFor(d)
	sl.token = newToken(NewSecret("an-access-token-of-some-length-as-servers-issue-them"), time.Now().Add(time.Hour), time.Now().Add(time.Hour))
	sl.publish()
	return s, d
}

func BenchmarkDerivedCurrent(b *testing.B) {
	_, d := readyDerived(b)
	b.ReportAllocs()
	for b.Loop() {
		if d.Current() == nil {
			b.Fatal("no token")
		}
	}
}

func BenchmarkDerivedCurrentParallel(b *testing.B) {
	_, d := readyDerived(b)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if d.Current() == nil {
				b.Error("no token")
			}
		}
	})
}

func BenchmarkSessionCurrent(b *testing.B) {
	s := readySession(b)
	b.ReportAllocs()
	for b.Loop() {
		if s.Current() == nil {
			b.Fatal("no token")
		}
	}
}

// A want that depends on the request is looked up each time.
func BenchmarkDerivedLookup(b *testing.B) {
	s, _ := readyDerived(b)
	b.ReportAllocs()
	for b.Loop() {
		src, err := s.For(Want{Audience: "https://api.example"})
		if err != nil || src.Current() == nil {
			b.Fatal("no token")
		}
	}
}

func TestDerivedTokenAllocatesTheSliceOnly(t *testing.T) {
	_, d := readyDerived(t)
	h := http.Header{"Accept": {"*/*"}}
	if n := testing.AllocsPerRun(1000, func() { d.Current().SetHeader(h) }); n != 1 {
		t.Errorf("%v allocations, want 1", n)
	}
	if n := testing.AllocsPerRun(1000, func() { d.Current() }); n != 0 {
		t.Errorf("%v allocations to read, want 0", n)
	}
}

// TestDerivedTokenNeedsNoOwner would hang if a call with a usable token took a
// lock that anybody else has, or asked the owner: there is none.
func TestDerivedTokenNeedsNoOwner(t *testing.T) {
	s, d := readyDerived(t)
	src, err := s.For(Want{Audience: "https://api.example"})
	if err != nil || src != Source(d) {
		t.Fatalf("%v, %v", src, err)
	}
	if token, err := src.Token(t.Context()); err != nil || token != d.Current() {
		t.Error(err)
	}
}
