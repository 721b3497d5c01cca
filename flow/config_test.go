package flow_test

import (
	"context"
	"net/url"
	"strings"
	"testing"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

func TestMistakesInAConfigurationAreToldWithTheRemedy(t *testing.T) {
	secret := func(context.Context) (flow.Secret, error) { return flow.NewSecret("s"), nil }
	sign := func(context.Context, string) (flow.Secret, error) { return flow.NewSecret("s"), nil }
	headers := func(names ...string) map[string]func(context.Context) (flow.Secret, error) {
		m := make(map[string]func(context.Context) (flow.Secret, error))
		for _, n := range names {
			m[n] = secret
		}
		return m
	}
	good := flow.Config{Issuer: "https://as.example", ClientID: "c"}
	for name, tc := range map[string]struct {
		change func(*flow.Config)
		want   string // "" means that nothing is wrong
	}{
		"nothing":   {func(*flow.Config) {}, ""},
		"no client": {func(c *flow.Config) { c.ClientID = "" }, "client_id <id>"},
		"no server": {func(c *flow.Config) { c.Issuer = "" }, "issuer <url>"},
		"endpoints for an issuer": {func(c *flow.Config) {
			c.Issuer = ""
			c.Endpoints = flow.Endpoints{DeviceAuthorization: "https://a", Token: "https://b"}
		}, ""},
		"half the endpoints":     {func(c *flow.Config) { c.Issuer = ""; c.Endpoints.Token = "https://b" }, "token_endpoint <url>"},
		"clear text":             {func(c *flow.Config) { c.Issuer = "http://as.example" }, "insecure_http"},
		"clear text, insisted":   {func(c *flow.Config) { c.Issuer, c.InsecureHTTP = "http://as.example", true }, ""},
		"loopback":               {func(c *flow.Config) { c.Issuer = "http://127.0.0.1:8080/realm" }, ""},
		"loopback, version 6":    {func(c *flow.Config) { c.Issuer = "http://[::1]:8080" }, ""},
		"localhost":              {func(c *flow.Config) { c.Issuer = "http://as.localhost" }, ""},
		"looks like loopback":    {func(c *flow.Config) { c.Issuer = "http://127.0.0.1.example" }, "insecure_http"},
		"no scheme":              {func(c *flow.Config) { c.Issuer = "as.example" }, "https://"},
		"another scheme":         {func(c *flow.Config) { c.Endpoints.Token = "ftp://as.example" }, "token_endpoint"},
		"a user in the URL":      {func(c *flow.Config) { c.Issuer = "https://u:p4ss@as.example" }, "user name"},
		"a name with a slash":    {func(c *flow.Config) { c.Name = "../x" }, "session name"},
		"a path for the storage": {func(c *flow.Config) { c.StorageName = "../../x" }, "storage name"},
		"a device's storage":     {func(c *flow.Config) { c.StorageName = "door~0123456789abcdef0123456789abcdef" }, ""},
		"post without a secret":  {func(c *flow.Config) { c.ClientAuth = flow.ClientAuthPost }, "client_secret"},
		"none with a secret":     {func(c *flow.Config) { c.ClientAuth, c.Secret = flow.ClientAuthNone, secret }, "exclude"},
		"unknown authentication": {func(c *flow.Config) { c.ClientAuth = "magic" }, "none, post, basic, private_key_jwt or tls"},
		"JWT without a key":      {func(c *flow.Config) { c.ClientAuth = flow.ClientAuthPrivateKeyJWT }, "client_key <file>"},
		"JWT with a key":         {func(c *flow.Config) { c.Assertion = sign }, ""},
		"a key for nothing":      {func(c *flow.Config) { c.ClientAuth, c.Assertion = flow.ClientAuthTLS, sign }, "client_key"},
		"a key and a secret":     {func(c *flow.Config) { c.Secret, c.Assertion = secret, sign }, "exclude"},
		"tls with a secret":      {func(c *flow.Config) { c.ClientAuth, c.Secret = flow.ClientAuthTLS, secret }, "exclude"},
		"own header":             {func(c *flow.Config) { c.Headers = headers("content-type") }, "Content-Type"},
		"a host header":          {func(c *flow.Config) { c.Headers = headers("Host") }, "set by the flow itself"},
		"no header":              {func(c *flow.Config) { c.Headers = headers("a b") }, "no name"},
		"a header twice":         {func(c *flow.Config) { c.Headers = headers("X-A", "x-a") }, "given twice"},
		"basic has a header": {func(c *flow.Config) {
			c.ClientAuth, c.Secret, c.Headers = flow.ClientAuthBasic, secret, headers("authorization")
		}, "client_auth basic"},
		"post has none":            {func(c *flow.Config) { c.Secret, c.Headers = secret, headers("authorization") }, ""},
		"PKCE parameter":           {func(c *flow.Config) { c.Params = url.Values{"code_challenge": {"x"}} }, "set by the flow itself"},
		"unknown policy":           {func(c *flow.Config) { c.Login = "never" }, "on_demand or eager"},
		"relative resource":        {func(c *flow.Config) { c.Resource = []string{"/api"} }, "absolute URI"},
		"resource with a fragment": {func(c *flow.Config) { c.Resource = []string{"https://api.example/#x"} }, "fragment"},
		"scope with a space":       {func(c *flow.Config) { c.Scope = []string{"a b"} }, "scope"},
		"own parameter":            {func(c *flow.Config) { c.Params = url.Values{"scope": {"x"}} }, "setting of that name"},
	} {
		c := good
		tc.change(&c)
		err := c.Validate()
		switch {
		case tc.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%s: %v, want a word on %q", name, err, tc.want)
		case err != nil && strings.Contains(err.Error(), "p4ss"):
			t.Errorf("%s: a password in %v", name, err)
		}
		if _, newErr := flow.New(c); (newErr == nil) != (err == nil) {
			t.Errorf("%s: New says %v, Validate %v", name, newErr, err)
		}
	}
}
