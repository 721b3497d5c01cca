package caddymodule

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/certmagic"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

func TestStoreKeepsItsContractOverFiles(t *testing.T) {
	dir := t.TempDir()
	store, ctx := newStore(&certmagic.FileStorage{Path: dir}), t.Context()

	if _, err := store.Load(ctx, "a.json"); !errors.Is(err, flow.ErrNotFound) {
		t.Errorf("Load of nothing: %v", err)
	}
	for _, want := range []string{"one", "another"} {
		if err := store.Save(ctx, "a.json", []byte(want)); err != nil {
			t.Fatal(err)
		}
		if got, err := store.Load(ctx, "a.json"); err != nil || !bytes.Equal(got, []byte(want)) {
			t.Errorf("Load: %q %v, want %q", got, err, want)
		}
	}

	// S72 of the scorecard: nobody else may read it.
	for path, want := range map[string]fs.FileMode{"device_flow": 0o700, "device_flow/a.json": 0o600} {
		if info, err := os.Stat(filepath.Join(dir, path)); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v %v, want %v", path, info, err, want)
		}
	}
}

func TestStoreLockIsHeldByOne(t *testing.T) {
	store := newStore(&certmagic.FileStorage{Path: t.TempDir()}).(flow.Locker)
	unlock, err := store.Lock(t.Context(), "a.json.refresh-1")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := store.Lock(ctx, "a.json.refresh-1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the second got %v", err)
	}
	if other, err := store.Lock(t.Context(), "a.json.refresh-2"); err != nil {
		t.Errorf("another name: %v", err)
	} else {
		other()
	}
	unlock()
	again, err := store.Lock(t.Context(), "a.json.refresh-1")
	if err != nil {
		t.Fatal(err)
	}
	again()
}

// failingStorage fails in every way.
type failingStorage struct {
	certmagic.Storage
	err error
}

func (f failingStorage) Store(context.Context, string, []byte) error  { return f.err }
func (f failingStorage) Load(context.Context, string) ([]byte, error) { return nil, f.err }
func (f failingStorage) Lock(context.Context, string) error           { return f.err }

func TestStorePassesFailuresOn(t *testing.T) {
	broken := errors.New("it is broken")
	store := newStore(failingStorage{err: broken})
	_, load := store.Load(t.Context(), "a")
	_, lock := store.(flow.Locker).Lock(t.Context(), "a")
	for name, err := range map[string]error{
		"Load": load, "Save": store.Save(t.Context(), "a", nil), "Lock": lock,
	} {
		if !errors.Is(err, broken) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The clock of this instance is a decade ahead of that of the file system, which stamps what others are writing.
func TestLeftoversOfKilledWritesAreSwept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		folder := filepath.Join(dir, "device_flow")
		if err := os.Mkdir(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		write := func(name string, age time.Duration) {
			path := filepath.Join(folder, name)
			if err := os.WriteFile(path, []byte("a token"), 0o600); err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			at := info.ModTime().Add(-age)
			if err := os.Chtimes(path, at, at); err != nil {
				t.Fatal(err)
			}
		}
		for name, age := range map[string]time.Duration{
			"1": time.Hour, "2": 10 * time.Minute, "3": 0, "4": time.Minute,
			"default-0af3.json": time.Hour, "default-0af3.json.refused": time.Hour,
		} {
			write(name, age)
		}
		<-time.After(40 * 365 * 24 * time.Hour) // of the bubble, which begins in 2000
		l := leftoversOf(store{&certmagic.FileStorage{Path: dir}})
		requireLeft := func(when string, want ...string) {
			t.Helper()
			var left []string
			entries, err := os.ReadDir(folder)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				left = append(left, e.Name())
			}
			if want = append(want, "default-0af3.json", "default-0af3.json.refused"); !slices.Equal(left, want) {
				t.Errorf("%s are left %q, want %q", when, left, want)
			}
		}
		l.first()
		requireLeft("at first", "2", "3", "4")
		write("4", 0)
		write("5", time.Hour)
		l.second()
		requireLeft("later", "4", "5")
	})
}

// aside are the names of what was put aside in a folder of records.
func aside(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "device_flow"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "a.json" {
			names = append(names, e.Name())
		}
	}
	return names
}

// A file that is too long came back once a second, and each was kept.
func TestWhatIsTooLongToReadIsKeptOnce(t *testing.T) {
	dir := t.TempDir()
	store, ctx := newStore(&certmagic.FileStorage{Path: dir}), t.Context()
	for range 3 {
		if err := store.Save(ctx, "a.json", make([]byte, flow.MaxRecord)); err != nil {
			t.Fatal(err)
		}
		if b, err := store.Load(ctx, "a.json"); err != nil || len(b) != flow.MaxRecord {
			t.Fatalf("the longest record: %d bytes, %v", len(b), err)
		}
		if err := store.Save(ctx, "a.json", make([]byte, flow.MaxRecord+1)); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Load(ctx, "a.json"); !errors.Is(err, flow.ErrRecord) {
			t.Fatalf("one byte more: %v", err)
		}
		if _, err := store.Load(ctx, "a.json"); !errors.Is(err, flow.ErrNotFound) {
			t.Fatalf("afterwards: %v", err)
		}
	}
	if got := aside(t, dir); len(got) != 1 {
		t.Errorf("kept are %q, want one", got)
	}
}

// Once a folder had been in a record's place, no record could be put aside any more,
// and so none was stored.
func TestAFolderInTheRecordsPlaceIsInNobodysWay(t *testing.T) {
	dir := t.TempDir()
	store, ctx := newStore(&certmagic.FileStorage{Path: dir}), t.Context()
	for n := range 2 {
		if err := os.MkdirAll(filepath.Join(dir, "device_flow", "a.json", "sub"), 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Load(ctx, "a.json"); !errors.Is(err, flow.ErrRecord) {
			t.Fatalf("a folder: %v", err)
		}
		if slices.Contains(aside(t, dir), "a.json.refused") != (n > 0) {
			t.Error("it is where flow puts records aside")
		}
		if err := store.Save(ctx, "a.json.refused", []byte("damaged")); err != nil {
			t.Fatalf("what flow puts aside: %v", err)
		}
		if got := aside(t, dir); len(got) != n+2 {
			t.Errorf("kept are %q, want %d folders and a file", got, n+1)
		}
	}
	// Somebody else has put one where records go.
	for _, key := range []string{"a.json", "b.json.refused"} {
		if err := os.MkdirAll(filepath.Join(dir, "device_flow", key, "sub"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := store.Save(ctx, key, []byte("new")); err != nil {
			t.Errorf("%s: %v", key, err)
		}
		if b, err := store.Load(ctx, key); string(b) != "new" {
			t.Errorf("%s: %q, %v", key, b, err)
		}
	}
}
