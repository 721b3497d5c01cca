package flow

import "time"

// DerivedInfo describes an access token for another API, for people. It has no secret.
type DerivedInfo struct {
	Audience string   `json:"audience,omitempty"`
	Resource []string `json:"resource,omitempty"`
	// Scope is what the token has, which can be less than was asked for.
	Scope []string `json:"scope,omitempty"`
	// ExpiresAt is nil without a token, or when the server did not say.
	ExpiresAt *time.Time   `json:"expires_at,omitempty"`
	Error     *StatusError `json:"error,omitempty"`
}

// Derived lists the tokens for other APIs that are in use, in no order.
func (s *Session) Derived() (list []DerivedInfo) {
	s.each(func(sl *slot) {
		v := sl.view.Load()
		info := DerivedInfo{Audience: sl.want.Audience, Resource: sl.want.Resource, Scope: sl.want.Scope, Error: v.err}
		if v.token != nil {
			info.Scope = v.scope
			if !v.token.expiry.IsZero() {
				at := stamp(v.token.expiry)
				info.ExpiresAt = &at
			}
		}
		list = append(list, info)
	})
	return list
}
