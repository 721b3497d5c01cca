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

// refuse moves aside what cannot be a record and must not be read into memory. A file
// takes the place of the one before: something that writes such files again and again
// shall not fill the disk. A folder never stands where flow puts records aside, for no
// file could take its place there.
func refuse(name string) error {
	info, err := os.Lstat(name)
	if err != nil || info.Mode().IsRegular() && info.Size() <= flow.MaxRecord || info.Mode()&os.ModeSymlink != 0 {
		return nil //nolint:nilerr // the storage itself tells what is wrong, if anything
	}
	what, aside := fmt.Sprintf("%d bytes long", info.Size()), name+".refused-unread"
	if info.IsDir() {
		what, aside = "a folder", name+".refused-folder"
	}
	if there, err := os.Lstat(aside); err == nil && (info.IsDir() || there.IsDir()) {
		aside += "-" + strconv.FormatInt(time.Now().UnixNano(), 10)
	}
	if err := os.Rename(name, aside); err != nil {
		return fmt.Errorf("%s is %s, and could not be put aside: %w", name, what, err)
	}
	return fmt.Errorf("%w: it was %s, and is now at %s", flow.ErrRecord, what, aside)
}

func (s store) Save(ctx context.Context, key string, value []byte) error {
	key = path.Join(storageFolder, key)
	err := s.Store(ctx, key, value)
	files, ok := s.Storage.(*certmagic.FileStorage)
	if !ok {
		return err
	}
	if err != nil && errors.Is(refuse(files.Filename(key)), flow.ErrRecord) {
		err = s.Store(ctx, key, value) // now that no folder is in the way
	}
	if err != nil {
		return err
	}
	// It has synced the file and renamed it; without the folder, the new name can
	// still be lost with the power.
	syncFolder(filepath.Dir(files.Filename(key)))
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
