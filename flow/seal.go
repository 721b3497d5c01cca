package flow

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

const (
	keySize = 32 // AES-256
	// sealedVersion is the version of an envelope. It counts with those of
	// records, so that a release that knows nothing of sealing takes it for a
	// newer one's record, and leaves it alone.
	sealedVersion = 2
	// sealedFor precedes the storage key in what the seal vouches for.
	sealedFor = "caddy-deviceflow record 2\x00"
)

// errSealed is an ErrRecord that says: it is whole, and somebody has the key.
var errSealed = fmt.Errorf("%w: it is sealed", ErrRecord)

// leaveAlone reports whether err means that a record is good for somebody else:
// it is neither put aside nor overwritten.
func leaveAlone(err error) bool { return errors.Is(err, errNewer) || errors.Is(err, errSealed) }

// Key seals stored logins by AES-256-GCM; see Config.Keys. The zero Key stands
// for none. No formatter, logger or encoder prints the key itself.
type Key struct {
	id     string // tells a wrong key from a damaged record, and is no secret
	secret Secret // the 32 bytes
}

// ParseKey reads a key of 32 bytes in base64, of either alphabet, or in hex. It
// takes nothing else: a pass phrase can be guessed at leisure by whoever has a
// copy of the record. The error says how to make a key, and nothing of text.
func ParseKey(text Secret) (Key, error) {
	s := strings.TrimSpace(text.Reveal())
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != keySize {
		s = strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimRight(s, "="))
		b, err = base64.RawStdEncoding.DecodeString(s)
	}
	if err != nil || len(b) != keySize {
		return Key{}, errors.New("it is no key of 32 bytes in base64 or hex: make one with 'openssl rand -base64 32'")
	}
	id := sha256.Sum256(append([]byte("caddy-deviceflow key id\x00"), b...))
	return Key{id: hex.EncodeToString(id[:8]), secret: NewSecret(string(b))}, nil
}

// IsZero reports whether k is no key.
func (k Key) IsZero() bool { return k.secret.IsZero() }

// aead prepends a random nonce of 96 bits, which does for 2^32 records (NIST
// SP 800-38D §8.3).
func (k Key) aead() (cipher.AEAD, error) {
	block, err := aes.NewCipher([]byte(k.secret.Reveal()))
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// envelope is the form of a sealed record in the [Store].
type envelope struct {
	Version int     `json:"version"`
	KeyID   string  `json:"key_id"`
	Sealed  *string `json:"sealed"` // base64 of nonce, ciphertext and tag
}

// seal encloses a record for the store, if there is a key to do so.
func (c *client) seal(plain []byte) ([]byte, error) {
	if len(c.Keys) == 0 || c.Keys[0].IsZero() {
		return plain, nil
	}
	k := c.Keys[0]
	gcm, err := k.aead()
	if err != nil {
		return nil, fmt.Errorf("sealing: %w", err)
	}
	text := base64.StdEncoding.EncodeToString(gcm.Seal(nil, nil, plain, c.sealedFor())) //nolint:gosec // this cipher makes a random nonce by itself
	return json.Marshal(envelope{sealedVersion, k.id, &text})
}

// open returns what is in an envelope, and anything else as it is. stale says
// that it would be written in another way now: with another key, or with one at
// all, or without. Errors wrap [ErrRecord].
func (c *client) open(b []byte) (plain []byte, stale bool, err error) {
	var e envelope
	_ = json.Unmarshal(b, &e) // what does not fit is no envelope
	seals := ""
	if len(c.Keys) > 0 {
		seals = c.Keys[0].id
	}
	if e.Version != sealedVersion || e.Sealed == nil {
		return b, seals != "", nil
	}
	for _, k := range c.Keys {
		if k.IsZero() || k.id != e.KeyID {
			continue
		}
		gcm, err := k.aead()
		if err != nil {
			return nil, false, fmt.Errorf("%w: %w", errSealed, err)
		}
		text, err := base64.StdEncoding.DecodeString(*e.Sealed)
		if err == nil {
			plain, err = gcm.Open(nil, nil, text, c.sealedFor())
		}
		if err != nil {
			// The two look the same: that is what the seal is for.
			return nil, false, fmt.Errorf("%w: it is damaged, or was sealed for another session", ErrRecord)
		}
		return plain, k.id != seals, nil
	}
	return nil, false, fmt.Errorf("%w with another encryption_key (key id %s): configure that one again, alone, behind a new one, or behind 'off'", errSealed, clean(e.KeyID, 16))
}

// sealedFor binds an envelope to its place: the record of one session shall not
// pass for another's.
func (c *client) sealedFor() []byte { return []byte(sealedFor + c.storageKey) }
