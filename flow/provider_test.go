package flow_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

const tenant = "72f988bf-86f1-41af-91ab-2d7cd011db47"

func TestPresetsNameTheServersPlaces(t *testing.T) {
	for _, tc := range []struct {
		provider string
		want     flow.Config
	}{
		{"auth0 acme.eu.auth0.com", flow.Config{Issuer: "https://acme.eu.auth0.com"}},
		{"auth0 https://login.acme.example/", flow.Config{Issuer: "https://login.acme.example"}},
		{"google", flow.Config{Issuer: "https://accounts.google.com"}},
		{"microsoft contoso.onmicrosoft.com", flow.Config{Endpoints: flow.Endpoints{
			DeviceAuthorization: "https://login.microsoftonline.com/contoso.onmicrosoft.com/oauth2/v2.0/devicecode",
			Token:               "https://login.microsoftonline.com/contoso.onmicrosoft.com/oauth2/v2.0/token",
		}}},
		{"microsoft " + tenant, flow.Config{
			Issuer: "https://login.microsoftonline.com/" + tenant + "/v2.0",
			Endpoints: flow.Endpoints{
				DeviceAuthorization: "https://login.microsoftonline.com/" + tenant + "/oauth2/v2.0/devicecode",
				Token:               "https://login.microsoftonline.com/" + tenant + "/oauth2/v2.0/token",
			},
		}},
		{"github", flow.Config{Identify: true, Endpoints: flow.Endpoints{
			DeviceAuthorization: "https://github.com/login/device/code",
			Token:               "https://github.com/login/oauth/access_token",
			UserInfo:            "https://api.github.com/user",
		}}},
		{"github github.acme.example", flow.Config{Identify: true, Endpoints: flow.Endpoints{
			DeviceAuthorization: "https://github.acme.example/login/device/code",
			Token:               "https://github.acme.example/login/oauth/access_token",
			UserInfo:            "https://github.acme.example/api/v3/user",
		}}},
		{"gitlab", flow.Config{Issuer: "https://gitlab.com", Endpoints: flow.Endpoints{DeviceAuthorization: "https://gitlab.com/oauth/authorize_device"}}},
		{"gitlab https://git.acme.example/gitlab", flow.Config{
			Issuer: "https://git.acme.example/gitlab", Endpoints: flow.Endpoints{DeviceAuthorization: "https://git.acme.example/gitlab/oauth/authorize_device"},
		}},
		{"okta acme.okta.com", flow.Config{Issuer: "https://acme.okta.com/oauth2/default", Endpoints: flow.Endpoints{
			DeviceAuthorization: "https://acme.okta.com/oauth2/default/v1/device/authorize",
			Token:               "https://acme.okta.com/oauth2/default/v1/token",
		}}},
		{"okta acme.okta.com aus9o8wzkhckw9TLa0h7", flow.Config{Issuer: "https://acme.okta.com/oauth2/aus9o8wzkhckw9TLa0h7", Endpoints: flow.Endpoints{
			DeviceAuthorization: "https://acme.okta.com/oauth2/aus9o8wzkhckw9TLa0h7/v1/device/authorize",
			Token:               "https://acme.okta.com/oauth2/aus9o8wzkhckw9TLa0h7/v1/token",
		}}},
		{"keycloak https://sso.acme.example/auth/ things", flow.Config{Issuer: "https://sso.acme.example/auth/realms/things", PKCE: true}},
		{"keycloak http://127.0.0.1:8080 a%b", flow.Config{Issuer: "http://127.0.0.1:8080/realms/a%25b", PKCE: true}},
	} {
		words := strings.Fields(tc.provider)
		in := flow.Config{ClientID: "c", Scope: []string{"a"}, Secret: aSecret}
		got, err := flow.Provider{Name: words[0], Args: words[1:]}.Apply(in)
		if err != nil {
			t.Errorf("%s: %v", tc.provider, err)
			continue
		}
		if got.Issuer != tc.want.Issuer || got.Endpoints != tc.want.Endpoints || got.Identify != tc.want.Identify || got.PKCE != tc.want.PKCE {
			t.Errorf("%s: issuer %q, endpoints %+v, identify %v, PKCE %v", tc.provider, got.Issuer, got.Endpoints, got.Identify, got.PKCE)
		}
		if err := got.Validate(); err != nil {
			t.Errorf("%s: %v", tc.provider, err)
		}
		// Whoever wrote out what the preset stands for keeps the login.
		plain := in
		plain.Issuer, plain.Endpoints = tc.want.Issuer, tc.want.Endpoints
		if got.Fingerprint() != plain.Fingerprint() {
			t.Errorf("%s: this is another login than without the preset", tc.provider)
		}
		if got.Issuer != "" {
			plain.Issuer, plain.Endpoints = tc.want.Issuer+"/", flow.Endpoints{}
			if got.Fingerprint() != plain.Fingerprint() {
				t.Errorf("%s: this is another login than with the issuer alone", tc.provider)
			}
		}
	}
}

var aSecret = secretOf("s")

func secretOf(s string) func(context.Context) (flow.Secret, error) {
	return func(context.Context) (flow.Secret, error) { return flow.NewSecret(s), nil }
}

func TestWhatIsWrittenOutOverridesThePreset(t *testing.T) {
	mine := flow.Config{ClientID: "c", Endpoints: flow.Endpoints{Token: "https://proxy.example/token", UserInfo: "https://api.octo.ghe.com/user"}}
	got, err := flow.Provider{Name: "github"}.Apply(mine)
	if err != nil || got.Endpoints.Token != mine.Endpoints.Token || got.Endpoints.UserInfo != mine.Endpoints.UserInfo ||
		got.Endpoints.DeviceAuthorization != "https://github.com/login/device/code" {
		t.Errorf("%+v, %v", got.Endpoints, err)
	}
	mine = flow.Config{ClientID: "c", Issuer: "https://okta.acme.example/oauth2/mine"}
	got, err = flow.Provider{Name: "okta", Args: []string{"acme.okta.com"}}.Apply(mine)
	if err != nil || got.Issuer != mine.Issuer || got.Endpoints != (flow.Endpoints{}) {
		t.Errorf("%q, %+v, %v", got.Issuer, got.Endpoints, err)
	}
}

func TestMistakesWithPresetsAreToldWithTheRemedy(t *testing.T) {
	for provider, want := range map[string]string{
		"auth":                    "auth0 <domain>, github [host], gitlab [host], google, keycloak <url> <realm>, microsoft <tenant>, okta <domain> [server], or 'issuer <url>'",
		"":                        "is not known",
		"auth0":                   "the domain is missing: write 'provider auth0 <domain>'",
		"auth0 a.example eu":      `"eu" is too much: write 'provider auth0 <domain>'`,
		"auth0 https://":          "neither the name of a server nor its URL",
		"auth0 u:p4ss@a.example":  "neither the name of a server",
		"auth0 a.example?x":       "neither the name of a server",
		"auth0 {domain}":          "neither the name of a server",
		"google com":              `"com" is too much: write 'provider google'`,
		"keycloak https://a":      "the realm is missing: write 'provider keycloak <url> <realm>'",
		"keycloak https://a ../b": "not one segment of a path",
		"microsoft ..":            "not one segment of a path",
		"microsoft {tenant}":      "not one segment of a path",
	} {
		name, args, _ := strings.Cut(provider, " ")
		p := flow.Provider{Name: name, Args: strings.Fields(args)}
		_, err := p.Apply(flow.Config{ClientID: "c", Secret: aSecret, Scope: []string{"a"}})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "p4ss") {
			t.Errorf("%s: %v, want %s", provider, err, want)
		}
	}
	if _, err := (flow.Provider{Name: "google"}).Apply(flow.Config{ClientID: "c"}); err == nil || !strings.Contains(err.Error(), "client_secret {file.") {
		t.Errorf("google without a secret: %v", err)
	}
	if _, err := (flow.Provider{Name: "microsoft", Args: []string{"common"}}).Apply(flow.Config{ClientID: "c"}); err == nil || !strings.Contains(err.Error(), "'scope ") {
		t.Errorf("microsoft without a scope: %v", err)
	}
	if !slices.IsSorted(flow.Providers()) {
		t.Errorf("%q", flow.Providers())
	}
}
