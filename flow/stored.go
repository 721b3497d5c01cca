package flow

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"
)

const (
	maxLoads    = 8          // reads at the same time, all but one or two of them abandoned
	asideSuffix = ".refused" // of the key of a record that is put aside
)

// digest tells what a store holds from anything else that it may hold. The zero value
// is that of nothing.
type digest [sha256.Size]byte

func digestOf(b []byte) digest {
	if len(b) == 0 {
		return digest{}
	}
	return sha256.Sum256(b)
}

// read fetches, opens and decodes the record. Without one, all results are nil.
func (c *client) read(ctx context.Context) ([]byte, *record, error) {
	return c.readUnlike(ctx, digest{})
}

// readUnlike is read, but it does not decode what is as it was seen before.
func (c *client) readUnlike(ctx context.Context, seen digest) ([]byte, *record, error) {
	b, err := c.load(ctx)
	if errors.Is(err, ErrNotFound) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	if len(b) > 0 && digestOf(b) == seen {
		return b, nil, nil
	}
	plain, stale, err := c.open(b)
	if err != nil {
		return b, nil, err
	}
	r, err := decodeRecord(plain, c.fingerprint)
	if r != nil {
		if !c.allows(r) {
			return b, nil, c.notAllowed(r)
		}
		r.stale = stale
	}
	return b, r, err
}

// encode writes the record as it goes into the store.
func (s *Session) encode() ([]byte, error) {
	now := time.Now()
	b, err := s.rec.encode(now, s.wall(now))
	if err != nil {
		return nil, err
	}
	return s.client.Load().seal(b)
}

// load is Store.Load for no longer than ctx, whatever the store makes of ctx: a
// refresh must not hang on it. Calls that a dead store never ends are bounded.
func (c *client) load(ctx context.Context) ([]byte, error) {
	type result struct {
		b   []byte
		err error
	}
	if c.loads.Add(1) > maxLoads {
		c.loads.Add(-1)
		return nil, errors.New("earlier reads have not ended yet")
	}
	done := make(chan result, 1)
	go func() {
		defer c.loads.Add(-1)
		b, err := c.Store.Load(ctx, c.storageKey)
		done <- result{b, err}
	}()
	select {
	case r := <-done:
		return r.b, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// putAside keeps a copy of a record that is about to be overwritten; cause is
// why it cannot be used, if that is the reason.
func (c *client) putAside(ctx context.Context, b []byte, cause error) error {
	if err := c.Store.Save(ctx, c.storageKey+asideSuffix, b); err != nil {
		return fmt.Errorf("putting the stored login aside: %w", err)
	}
	return cause
}

// keepCopy puts the login aside before a part of it is given up.
func (s *Session) keepCopy() {
	c := s.client.Load()
	b, err := s.encode()
	if err != nil {
		return
	}
	s.job(func(ctx context.Context) func() {
		ctx, cancel := context.WithTimeout(ctx, storeTimeout)
		defer cancel()
		_ = c.putAside(ctx, b, nil) // for a person to look at; nothing depends on it
		return func() {}
	})
}
