package caddymodule

import (
	"context"
	"os"
	"path"
	"path/filepath"

	"github.com/caddyserver/certmagic"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

// storageFolder is where all records lie in Caddy's storage.
const storageFolder = "device_flow"

// store is a flow.Store over Caddy's storage.
type store struct{ certmagic.Storage }

func newStore(s certmagic.Storage) flow.Store { return store{s} }

func (s store) Load(ctx context.Context, key string) ([]byte, error) {
	return s.Storage.Load(ctx, path.Join(storageFolder, key))
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
	_ flow.Store  = store{}
	_ flow.Locker = store{}
)
