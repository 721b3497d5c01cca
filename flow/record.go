package flow

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// recordVersion is the version that is written. A record of a newer version is
// refused and left alone.
const recordVersion = 1

// logoutLeap is by how much a logout raises the generation: refreshes that other
// instances have under way shall not outrank it. A login leaps, too, but not as
// far: it shall not be lost to a refresh of the login before, nor undo a logout.
const (
	logoutLeap = 16
	loginLeap  = 8
)

// ErrRecord is wrapped by every error about a stored record that can be read
// but not used.
var ErrRecord = errors.New("stored login cannot be used")

// errNewer is an ErrRecord that says: leave it to whoever wrote it.
var errNewer = fmt.Errorf("%w: it was written by a newer release", ErrRecord)

// record is what survives a restart and what instances share: the grant, or
// that there is none any more, and the code that is out.
type record struct {
	// fingerprint binds the record to issuer, client, scope and audience.
	fingerprint string
	// generation counts the changes of the grant: logins, refreshes, logouts. Of
	// two records the one with the higher generation is right.
	generation uint64

	access    Secret
	refresh   Secret
	expiry    time.Time // of the access token, zero: unknown
	obtained  time.Time
	refreshAt time.Time
	scope     []string
	account   *Account
	claims    claims    // of the account
	loginAt   time.Time // when the person approved
	others    bool      // tokens for other APIs have been asked for

	pending *pendingLogin
	// failed is why the last login ended without a grant; held says that only a
	// person may start the next.
	failed *StatusError
	held   bool
	ended  endedCodes

	claim claim

	// stale: the store has it in another form than it would be written in now.
	stale bool
}

// pendingLogin is a code that waits for its operator. All instances show it, one
// polls: the poller, who proves to be alive by counting beat up.
type pendingLogin struct {
	code     Secret
	verifier Secret // of PKCE; without it nobody can poll for a code that was asked for with it
	info     LoginInfo
	interval time.Duration
	poller   string // an instance, "" for none
	beat     uint64

	left     time.Duration // until the end of the code, when the record was saved
	ends     time.Time     // by the monotonic clock
	nextPoll time.Time
	nextBeat time.Time
	heard    time.Time // when beat was last seen to change
	failures int       // polls without any answer in a row
}

// digest stands for the code where it is only compared.
func (p *pendingLogin) digest() string {
	sum := sha256.Sum256([]byte(p.code.Reveal()))
	return hex.EncodeToString(sum[:8])
}

// endPending forgets the code that is out.
func (r *record) endPending() {
	if r.pending != nil {
		r.ended, r.pending = r.ended.with(r.pending), nil
	}
}

// patience is how long a poller may be silent before another takes over.
func (p *pendingLogin) patience() time.Duration { return 2*p.interval + 2*time.Second }

// loggedIn reports whether the record holds a grant.
func (r *record) loggedIn() bool { return !r.access.IsZero() || !r.refresh.IsZero() }

// lifetime is that of the access token by the clock of whoever obtained it; 0
// when the server did not say.
func (r *record) lifetime() time.Duration {
	if r.expiry.IsZero() {
		return 0
	}
	return r.expiry.Sub(r.obtained)
}

// worthSaving reports whether there is anything in the record to keep.
func (r *record) worthSaving() bool {
	return r.loggedIn() || r.generation > 0 || r.pending != nil || r.failed != nil
}

// storedRecord is the record's form in the [Store], unless it is sealed. It
// reveals the secrets: who can read it has the login.
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
	Claims      claims       `json:"claims,omitempty"`
	LoginAt     time.Time    `json:"login_at,omitzero"`
	Others      bool         `json:"other_apis,omitempty"`
	Pending     *storedLogin `json:"pending,omitempty"`
	Failed      *StatusError `json:"failed,omitempty"`
	Held        bool         `json:"held,omitempty"`
	Ended       endedCodes   `json:"ended,omitempty"`
	Claim       *storedClaim `json:"refreshing,omitempty"`
	Saved       time.Time    `json:"saved_at,omitzero"` // for a person who looks at it
}

type storedClaim struct {
	By   string `json:"by"`
	Beat uint64 `json:"beat"`
}

type storedLogin struct {
	DeviceCode string        `json:"device_code"`
	Verifier   string        `json:"code_verifier,omitempty"`
	Info       LoginInfo     `json:"login"`
	Interval   time.Duration `json:"interval_ns"`
	Left       time.Duration `json:"left_ns"` // clocks of instances may differ
	Poller     string        `json:"poller,omitempty"`
	Beat       uint64        `json:"beat,omitempty"`
}

// encode writes r for the store. It is now, and wall by the wall clock.
func (r *record) encode(now, wall time.Time) ([]byte, error) {
	s := storedRecord{
		Version: recordVersion, Fingerprint: r.fingerprint, Generation: r.generation,
		Access: r.access.Reveal(), Refresh: r.refresh.Reveal(),
		Expiry: r.expiry.UTC(), Obtained: r.obtained.UTC(), RefreshAt: r.refreshAt.UTC(),
		Scope: r.scope, Account: r.account, Claims: r.claims, LoginAt: r.loginAt.UTC(), Others: r.others,
		Failed: r.failed, Held: r.held, Ended: r.ended, Saved: wall.UTC(),
	}
	if r.claim.by != "" {
		s.Claim = &storedClaim{By: r.claim.by, Beat: r.claim.beat}
	}
	if p := r.pending; p != nil {
		left := p.left
		if !p.ends.IsZero() {
			left = p.ends.Sub(now)
		}
		s.Pending = &storedLogin{DeviceCode: p.code.Reveal(), Verifier: p.verifier.Reveal(), Info: p.info, Interval: p.interval, Left: left, Poller: p.poller, Beat: p.beat}
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
		return nil, fmt.Errorf("%w (version %d, this one reads up to %d)", errNewer, s.Version, recordVersion)
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
		scope: s.Scope, account: s.Account, claims: s.Claims, loginAt: s.LoginAt, others: s.Others, failed: s.Failed, held: s.Held, ended: s.Ended,
	}
	if k := s.Claim; k != nil {
		r.claim = claim{by: k.By, beat: k.Beat}
	}
	if p := s.Pending; p != nil && p.DeviceCode != "" && p.Info.UserCode != "" {
		r.pending = &pendingLogin{
			code: NewSecret(p.DeviceCode), verifier: NewSecret(p.Verifier), info: p.Info,
			interval: max(min(p.Interval, maxCodeLifetime), minInterval),
			poller:   p.Poller, beat: p.Beat,
			left: min(p.Left, maxCodeLifetime),
		}
		if p.Interval <= 0 {
			r.pending.interval = defaultInterval
		}
	}
	return r, nil
}
