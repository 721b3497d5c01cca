package flow

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// recordVersion is the version that is written. A record of a newer version is
// refused and left alone.
const recordVersion = 1

// ErrRecord is wrapped by every error about a stored record that can be read
// but not used.
var ErrRecord = errors.New("stored login cannot be used")

// record is what survives a restart: the grant and the code that is out.
type record struct {
	// fingerprint binds the record to issuer, client, scope and audience.
	fingerprint string
	// generation counts the changes of the grant.
	generation uint64

	access    Secret
	refresh   Secret
	expiry    time.Time // of the access token, zero: unknown
	obtained  time.Time
	refreshAt time.Time
	scope     []string
	account   *Account
	loginAt   time.Time // when the person approved

	pending *pendingLogin
}

// pendingLogin is a code that waits for its operator.
type pendingLogin struct {
	code     Secret
	info     LoginInfo
	interval time.Duration
	nextPoll time.Time
	failures int // polls without any answer in a row
}

// loggedIn reports whether the record holds a grant.
func (r *record) loggedIn() bool { return !r.access.IsZero() || !r.refresh.IsZero() }

// worthSaving reports whether there is anything in the record to keep.
func (r *record) worthSaving() bool { return r.loggedIn() || r.pending != nil }

// storedRecord is the record's form in the [Store]. It reveals the secrets: who
// can read the store has the login.
type storedRecord struct {
	Version     int          `json:"version"`
	Fingerprint string       `json:"fingerprint"`
	Generation  uint64       `json:"generation"`
	Access      string       `json:"access_token,omitempty"`
	Refresh     string       `json:"refresh_token,omitempty"`
	Expiry      time.Time    `json:"expires_at,omitzero"`
	Obtained    time.Time    `json:"obtained_at,omitzero"`
	RefreshAt   time.Time    `json:"refresh_at,omitzero"`
	Scope       []string     `json:"scope,omitempty"`
	Account     *Account     `json:"account,omitempty"`
	LoginAt     time.Time    `json:"login_at,omitzero"`
	Pending     *storedLogin `json:"pending,omitempty"`
}

type storedLogin struct {
	DeviceCode string        `json:"device_code"`
	Info       LoginInfo     `json:"login"`
	Interval   time.Duration `json:"interval_ns"`
}

// encode writes r for the store.
func (r *record) encode() ([]byte, error) {
	s := storedRecord{
		Version: recordVersion, Fingerprint: r.fingerprint, Generation: r.generation,
		Access: r.access.Reveal(), Refresh: r.refresh.Reveal(),
		Expiry: r.expiry.UTC(), Obtained: r.obtained.UTC(), RefreshAt: r.refreshAt.UTC(),
		Scope: r.scope, Account: r.account, LoginAt: r.loginAt.UTC(),
	}
	if p := r.pending; p != nil {
		s.Pending = &storedLogin{DeviceCode: p.code.Reveal(), Info: p.info, Interval: p.interval}
	}
	return json.Marshal(s)
}

// decodeRecord reads what encode wrote. Errors wrap [ErrRecord].
func decodeRecord(b []byte, fingerprint string) (*record, error) {
	var s storedRecord
	if err := json.Unmarshal(b, &s); err != nil {
		// The decoder's message could quote a part of a secret.
		return nil, fmt.Errorf("%w: it is damaged", ErrRecord)
	}
	switch {
	case s.Version > recordVersion:
		return nil, fmt.Errorf("%w: it was written by a newer release (version %d, this one reads up to %d)", ErrRecord, s.Version, recordVersion)
	case s.Version < 1:
		return nil, fmt.Errorf("%w: it is damaged", ErrRecord)
	case s.Fingerprint != fingerprint:
		return nil, fmt.Errorf("%w: it belongs to another client, scope or audience", ErrRecord)
	case s.Access != "" && !bearerSyntax(s.Access):
		if s.Refresh == "" {
			return nil, fmt.Errorf("%w: its access token is damaged", ErrRecord)
		}
		s.Access = "" // the refresh token brings another
	}
	r := &record{
		fingerprint: s.Fingerprint, generation: s.Generation,
		access: NewSecret(s.Access), refresh: NewSecret(s.Refresh),
		expiry: s.Expiry, obtained: s.Obtained, refreshAt: s.RefreshAt,
		scope: s.Scope, account: s.Account, loginAt: s.LoginAt,
	}
	if p := s.Pending; p != nil && p.DeviceCode != "" && p.Info.UserCode != "" {
		r.pending = &pendingLogin{
			code: NewSecret(p.DeviceCode), info: p.Info,
			interval: max(min(p.Interval, maxCodeLifetime), minInterval),
		}
		if p.Interval <= 0 {
			r.pending.interval = defaultInterval
		}
	}
	return r, nil
}
