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

func TestLeftoversOfKilledWritesAreSwept(t *testing.T) {
	dir := t.TempDir()
	folder := filepath.Join(dir, "device_flow")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-2 * time.Minute)
	for name, at := range map[string]time.Time{
		"123456789": old, "987654321": time.Now(), "default-0af3.json": old, "default-0af3.json.refused": old,
	} {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte("a token"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	store{&certmagic.FileStorage{Path: dir}}.sweep()
	var left []string
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if want := []string{"987654321", "default-0af3.json", "default-0af3.json.refused"}; !slices.Equal(left, want) {
		t.Errorf("left are %q, want %q", left, want)
	}
}
