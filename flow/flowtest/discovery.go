package flowtest

import (
	"net/http"
	"net/url"
	"strings"
)

// route gives the step that a path stands for, or the empty one.
func route(cfg Config, path string) Step {
	base := ""
	if u, err := url.Parse(cfg.Issuer); err == nil {
		base = strings.TrimRight(u.Path, "/")
	}
	switch path {
	case "/.well-known/oauth-authorization-server" + base, // RFC 8414 section 3.1
		"/.well-known/openid-configuration" + base, // RFC 8414 section 5
		base + "/.well-known/openid-configuration": // OpenID Connect Discovery section 4.1
		return Discovery
	}
	p := cfg.Flavour.paths()
	switch path {
	case base + p.device:
		return Device
	case base + p.token:
		return Token
	case base + p.revoke:
		return Revoke
	case base + p.userinfo:
		return UserInfo
	case base + p.page:
		return Page
	}
	return ""
}

// serveDiscovery is the metadata document (RFC 8414 section 2).
func (s *Server) serveDiscovery(x *exchange) reply {
	if x.r.Method != http.MethodGet && x.r.Method != http.MethodHead {
		out := errorReply(http.StatusMethodNotAllowed, "invalid_request", "the method must be GET")
		out.header.Set("Allow", "GET, HEAD")
		return out
	}
	cfg, base, p := x.cfg, x.cfg.base(), x.cfg.Flavour.paths()
	methods := []string{"none"}
	switch {
	case cfg.VerifyAssertion != nil:
		methods = []string{"private_key_jwt"}
	case cfg.ClientSecret != "":
		methods = []string{"client_secret_basic", "client_secret_post"}
	}
	scopes := cfg.AllowedScopes
	if len(scopes) == 0 {
		scopes = []string{"openid", "profile", "email", "offline_access"}
	}
	doc := map[string]any{
		"issuer":                                     cfg.Issuer,
		"device_authorization_endpoint":              base + p.device,
		"token_endpoint":                             base + p.token,
		"revocation_endpoint":                        base + p.revoke,
		"userinfo_endpoint":                          base + p.userinfo,
		"grant_types_supported":                      []string{deviceGrant, "refresh_token"},
		"response_types_supported":                   []string{},
		"scopes_supported":                           scopes,
		"subject_types_supported":                    []string{"public"},
		"id_token_signing_alg_values_supported":      []string{"HS256"},
		"token_endpoint_auth_methods_supported":      methods,
		"revocation_endpoint_auth_methods_supported": methods,
	}
	return jsonReply(http.StatusOK, doc)
}
