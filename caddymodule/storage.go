package caddymodule

import (
	"context"
	"errors"
	"io/fs"
	"path"

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
	return s.Store(ctx, path.Join(storageFolder, key), value)
}

func (s store) Delete(ctx context.Context, key string) error {
	err := s.Storage.Delete(ctx, path.Join(storageFolder, key))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
