package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

// storageFolder is where all records lie in Caddy's storage.
const storageFolder = "device_flow"

// store is a flow.Store over Caddy's storage.
type store struct{ certmagic.Storage }

func newStore(s certmagic.Storage) flow.Store { return store{s} }

func (s store) Load(ctx context.Context, key string) ([]byte, error) {
	key = path.Join(storageFolder, key)
	if fs, ok := s.Storage.(*certmagic.FileStorage); ok {
		if err := refuse(fs.Filename(key)); err != nil {
			return nil, err
		}
	}
	return s.Storage.Load(ctx, key)
}

// maxRecord is more than any record has.
const maxRecord = 1 << 20

// refuse moves aside what cannot be a record and must not be read into memory.
func refuse(name string) error {
	info, err := os.Lstat(name)
	if err != nil || info.Mode().IsRegular() && info.Size() <= maxRecord || info.Mode()&os.ModeSymlink != 0 {
		return nil //nolint:nilerr // the storage itself tells what is wrong, if anything
	}
	what := fmt.Sprintf("%d bytes long", info.Size())
	if info.IsDir() {
		what = "a folder"
	}
	aside := name + ".refused"
	if _, err := os.Lstat(aside); err == nil {
		aside += "-" + strconv.FormatInt(time.Now().Unix(), 10)
	}
	if err := os.Rename(name, aside); err != nil {
		return fmt.Errorf("%s is %s, and could not be put aside: %w", name, what, err)
	}
	return fmt.Errorf("%w: it was %s, and is now at %s", flow.ErrRecord, what, aside)
}

func (s store) Save(ctx context.Context, key string, value []byte) error {
	key = path.Join(storageFolder, key)
	if err := s.Store(ctx, key, value); err != nil {
		return err
	}
	if fs, ok := s.Storage.(*certmagic.FileStorage); ok {
		// It has synced the file and renamed it; without the folder, the new name
		// can still be lost with the power.
		syncFolder(filepath.Dir(fs.Filename(key)))
	}
	return nil
}

// Delete implements flow.Deleter. Without it the storage's own would be promoted,
// which knows nothing of our folder.
func (s store) Delete(ctx context.Context, key string) error {
	err := s.Storage.Delete(ctx, path.Join(storageFolder, key))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Lock implements flow.Locker.
func (s store) Lock(ctx context.Context, name string) (func(), error) {
	name = storageFolder + "-" + name // beside the records, where no listing of them finds it
	if err := s.Storage.Lock(ctx, name); err != nil {
		return nil, err
	}
	return func() {
		// Its holder may be on the way out; the lock shall go all the same.
		_ = s.Unlock(context.WithoutCancel(ctx), name)
	}, nil
}

// isLeftover reports whether a temporary file of FileStorage is called so. Its name
// is random, our own end in .json and .refused.
func isLeftover(name string) bool { return strings.TrimLeft(name, "0123456789") == "" }

const (
	leftoverAge = time.Minute // a younger one may be a write under way
	sweepAgain  = leftoverAge + 10*time.Second
)

// sweep removes what writes of killed processes have left behind: such a file
// can hold tokens that nobody would ever delete. Young ones may be under way.
func (s store) sweep() {
	fs, ok := s.Storage.(*certmagic.FileStorage)
	if !ok {
		return
	}
	folder := fs.Filename(storageFolder)
	entries, err := os.ReadDir(folder)
	if err != nil {
		return // nothing has ever been stored
	}
	for _, e := range entries {
		info, err := e.Info()
		if err == nil && info.Mode().IsRegular() && isLeftover(e.Name()) && time.Since(info.ModTime()) > leftoverAge {
			_ = os.Remove(filepath.Join(folder, e.Name()))
		}
	}
}

// syncFolder is best effort: not every system can.
func syncFolder(name string) {
	f, err := os.Open(name)
	if err != nil {
		return
	}
	_ = f.Sync()
	_ = f.Close()
}

var (
	_ flow.Store   = store{}
	_ flow.Locker  = store{}
	_ flow.Deleter = store{}
)
