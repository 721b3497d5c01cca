package main

import (
	"context"
	"crypto/rand"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/zitadel/oidc/v3/example/server/storage"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// user is who approves: one of the users of the library's example.
const user = "id1"

// store is the example's storage, with clients, device codes and tokens of its own: the example's give no refresh
// token to a device, live for five minutes, and take a device code twice.
type store struct {
	*storage.Storage
	lifetime time.Duration // of an access token
	dies     time.Duration // after which a device code is dead, whatever was announced
	slow     int           // polls of each code that take too long

	mu      sync.Mutex
	devices map[string]*device // by device code
	access  map[string]access  // by token ID
	refresh map[string]*login  // by refresh token, used ones too
}

type device struct {
	state    op.DeviceAuthorizationState
	userCode string
	polls    int
}

type access struct {
	login   *login
	expires time.Time
}

// login is what one approval leads to.
type login struct {
	storage.RefreshToken
	ended bool
}

func newStore(lifetime, dies time.Duration, slow int) *store {
	storage.RegisterClients(storage.NativeClient("device"), storage.DeviceClient("service", "secret of the service"))
	return &store{
		Storage:  storage.NewStorage(storage.NewUserStore("http://127.0.0.1/")),
		lifetime: lifetime, dies: dies, slow: slow,
		devices: map[string]*device{}, access: map[string]access{}, refresh: map[string]*login{},
	}
}

// client is one of the example's that may do what a device does.
type client struct{ op.Client }

func (client) GrantTypes() []oidc.GrantType {
	return []oidc.GrantType{oidc.GrantTypeDeviceCode, oidc.GrantTypeRefreshToken}
}

func (s *store) GetClientByClientID(ctx context.Context, id string) (op.Client, error) {
	c, err := s.Storage.GetClientByClientID(ctx, id)
	if err != nil {
		return nil, err
	}
	return client{c}, nil
}

func (s *store) StoreDeviceAuthorization(_ context.Context, clientID, deviceCode, userCode string, _ time.Time, scopes []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.devices[deviceCode] = &device{userCode: userCode, state: op.DeviceAuthorizationState{
		ClientID: clientID, Scopes: scopes, Expires: time.Now().Add(s.dies),
	}}
	return nil
}

// GetDeviceAuthorizatonState (the library's spelling) is asked at each poll.
func (s *store) GetDeviceAuthorizatonState(ctx context.Context, clientID, deviceCode string) (*op.DeviceAuthorizationState, error) {
	s.mu.Lock()
	d := s.devices[deviceCode]
	if d == nil || d.state.ClientID != clientID {
		s.mu.Unlock()
		return nil, errors.New("no such device code")
	}
	d.polls++
	state, tooSlow := d.state, d.polls <= s.slow
	if state.Done && !tooSlow {
		delete(s.devices, deviceCode) // once is once
	}
	s.mu.Unlock()
	if tooSlow {
		<-ctx.Done() // the library gives its storage 4 s
		return nil, ctx.Err()
	}
	return &state, nil
}

// operator is the person's part, without pages.
func (s *store) operator(w http.ResponseWriter, r *http.Request) {
	code, decision := r.PostFormValue("user_code"), r.PostFormValue("decision")
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.devices {
		if d.userCode != code {
			continue
		}
		switch decision {
		case "allow":
			d.state.Done, d.state.Subject, d.state.AuthTime = true, user, time.Now()
		case "deny":
			d.state.Denied = true
		default:
			http.Error(w, "decision: give allow or deny", http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusNoContent)
		return
	}
	http.Error(w, "no such code", http.StatusNotFound)
}

// newAccess makes the ID of an access token; the caller holds mu.
func (s *store) newAccess(l *login) (id string, expires time.Time) {
	delete(s.access, l.AccessToken)
	id, expires = rand.Text(), time.Now().Add(s.lifetime)
	l.AccessToken, s.access[id] = id, access{l, expires}
	return id, expires
}

func loginOf(r op.TokenRequest) *login {
	l := &login{RefreshToken: storage.RefreshToken{UserID: r.GetSubject(), Audience: r.GetAudience(), Scopes: r.GetScopes()}}
	if d, ok := r.(*op.DeviceAuthorizationState); ok {
		l.ApplicationID, l.AuthTime = d.ClientID, d.AuthTime
	}
	return l
}

// CreateAccessToken is for a login without offline_access.
func (s *store) CreateAccessToken(_ context.Context, r op.TokenRequest) (string, time.Time, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id, expires := s.newAccess(loginOf(r))
	return id, expires, nil
}

// CreateAccessAndRefreshTokens begins a login where current is empty, else it renews the one of that refresh token.
func (s *store) CreateAccessAndRefreshTokens(_ context.Context, r op.TokenRequest, current string) (string, string, time.Time, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := loginOf(r)
	if current != "" {
		if l = s.refresh[current]; l == nil || l.ended || l.Token != current {
			return "", "", time.Time{}, oidc.ErrInvalidGrant()
		}
	}
	id, expires := s.newAccess(l)
	l.Token = rand.Text()
	l.ID = l.Token
	s.refresh[l.Token] = l
	return id, l.Token, expires, nil
}

// TokenRequestByRefreshToken ends the whole login when a refresh token comes twice.
func (s *store) TokenRequestByRefreshToken(_ context.Context, token string) (op.RefreshTokenRequest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.refresh[token]
	if l != nil && l.Token != token {
		s.end(l)
	}
	if l == nil || l.ended {
		return nil, errors.New("no such refresh token")
	}
	copied := l.RefreshToken
	return storage.RefreshTokenRequestFromBusiness(&copied), nil
}

// end makes all tokens of a login worthless; the caller holds mu.
func (s *store) end(l *login) {
	l.ended = true
	delete(s.access, l.AccessToken)
}

func (s *store) GetRefreshTokenInfo(_ context.Context, _, token string) (userID, tokenID string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.refresh[token]
	if l == nil {
		return "", "", op.ErrInvalidRefreshToken
	}
	return l.UserID, token, nil
}

func (s *store) RevokeToken(_ context.Context, token, _, clientID string) *oidc.Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.refresh[token]
	if l == nil {
		l = s.access[token].login
	}
	if l == nil {
		return nil // RFC 7009 §2.2: nothing to revoke is success
	}
	if l.ApplicationID != clientID {
		return oidc.ErrInvalidClient().WithDescription("the token is another client's")
	}
	s.end(l)
	return nil
}

// SetUserinfoFromToken is the userinfo endpoint, which the tests ask whether a token is good.
func (s *store) SetUserinfoFromToken(ctx context.Context, info *oidc.UserInfo, id, _, _ string) error {
	s.mu.Lock()
	a, known := s.access[id]
	s.mu.Unlock()
	if !known || !time.Now().Before(a.expires) {
		return errors.New("no such access token")
	}
	who := &op.DeviceAuthorizationState{Subject: a.login.UserID, ClientID: a.login.ApplicationID}
	return s.SetUserinfoFromRequest(ctx, info, who, a.login.Scopes)
}
