package caddymodule

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

// unmarshalOption parses one client setting, which the global option and the
// directive share. known is false for a setting of somebody else.
//
//	provider <name> [<args...>]
//	issuer <url>
//	device_authorization_endpoint|token_endpoint|revocation_endpoint|userinfo_endpoint <url>
//	client_id <id>
//	client_secret <secret>
//	client_auth none|post|basic|private_key_jwt|tls
//	client_key <file>
//	scope <scope...>
//	audience <value>
//	resource <uri...>
//	param <name> <value>
//	header <name> <value>
//	account <claim> <value>
//	login on_demand|eager
//	cache_size <n>
//	log_qr
//	insecure_http
//	encryption_key <key>|off [<older key...>]
//	storage <module> ...
//	auth_transport http { ... }
func (c *Client) unmarshalOption(d *caddyfile.Dispenser) (known bool, err error) {
	d.Next()
	switch option := d.Val(); option {
	case "provider":
		args := d.RemainingArgs()
		if len(args) == 0 {
			return true, d.Errf("provider takes the name of a preset: %s", strings.Join(flow.Providers(), ", "))
		}
		if c.Provider != nil {
			return true, d.Errf("provider is given twice")
		}
		c.Provider = &Provider{Name: args[0], Args: args[1:]}
		return true, noBlock(d)
	case "issuer":
		return true, oneArg(d, &c.Issuer)
	case "device_authorization_endpoint":
		return true, oneArg(d, &c.DeviceAuthorizationEndpoint)
	case "token_endpoint":
		return true, oneArg(d, &c.TokenEndpoint)
	case "revocation_endpoint":
		return true, oneArg(d, &c.RevocationEndpoint)
	case "userinfo_endpoint":
		return true, oneArg(d, &c.UserInfoEndpoint)
	case "client_id":
		return true, oneArg(d, &c.ClientID)
	case "client_secret":
		return true, oneArg(d, &c.ClientSecret)
	case "client_key":
		return true, oneArg(d, &c.ClientKey)
	case "client_auth":
		return true, oneArg(d, &c.ClientAuth)
	case "audience":
		return true, oneArg(d, &c.Audience)
	case "login":
		return true, oneArg(d, &c.Login)
	case "scope":
		return true, moreArgs(d, &c.Scope)
	case "resource":
		return true, moreArgs(d, &c.Resource)
	case "param":
		args := d.RemainingArgs()
		if len(args) != 2 {
			return true, d.Errf("write 'param <name> <value>'")
		}
		if c.Params == nil {
			c.Params = make(map[string][]string)
		}
		c.Params[args[0]] = append(c.Params[args[0]], args[1])
		return true, noBlock(d)
	case "header":
		args := d.RemainingArgs()
		if len(args) != 2 {
			return true, d.Errf("write 'header <name> <value>', with the value in quotes if it has spaces")
		}
		if _, given := c.Headers[args[0]]; given {
			return true, d.Errf("header %s is given twice", args[0])
		}
		if c.Headers == nil {
			c.Headers = make(map[string]string)
		}
		c.Headers[args[0]] = args[1]
		return true, noBlock(d)
	case "account":
		args := d.RemainingArgs()
		if len(args) != 2 || args[0] == "" || args[1] == "" {
			return true, d.Errf("write 'account <claim> <value>', as in 'account email alice@example.com', with the value in quotes if it has spaces")
		}
		if c.Account != nil {
			return true, d.Errf("account is given twice: a session is the login of one account")
		}
		c.Account = &Account{Claim: args[0], Value: args[1]}
		return true, noBlock(d)
	case "cache_size":
		var s string
		if err := oneArg(d, &s); err != nil {
			return true, err
		}
		if c.CacheSize != 0 {
			return true, d.Errf("cache_size is given twice")
		}
		if c.CacheSize, err = strconv.Atoi(s); err != nil || c.CacheSize < 1 {
			return true, d.Errf("cache_size %q: use a number of one or more", s)
		}
		return true, nil
	case "log_qr":
		return true, onlySwitch(d, &c.LogQR)
	case "insecure_http":
		return true, onlySwitch(d, &c.InsecureHTTP)
	case "encryption_key":
		if c.EncryptionKey != nil {
			return true, d.Errf("encryption_key is given twice; write all keys on one line, the one that seals first")
		}
		return true, moreArgs(d, &c.EncryptionKey)
	case "storage":
		c.StorageRaw, err = moduleOption(d, c.StorageRaw, "caddy.storage.", "module")
		return true, err
	case "auth_transport":
		c.AuthTransportRaw, err = moduleOption(d, c.AuthTransportRaw, "http.reverse_proxy.transport.", "protocol")
		return true, err
	}
	return false, nil
}

// oneArg reads the only argument of a setting that may be given once.
func oneArg[T ~string](d *caddyfile.Dispenser, field *T) error {
	option := d.Val()
	args := d.RemainingArgs()
	if len(args) != 1 || args[0] == "" {
		return d.Errf("%s takes exactly one value; put a value with spaces in quotes", option)
	}
	if *field != "" {
		return d.Errf("%s is given twice", option)
	}
	*field = T(args[0])
	return noBlock(d)
}

// moreArgs reads a setting that takes several values and may be repeated.
func moreArgs(d *caddyfile.Dispenser, field *[]string) error {
	option := d.Val()
	args := d.RemainingArgs()
	if len(args) == 0 {
		return d.Errf("%s takes at least one value", option)
	}
	*field = append(*field, args...)
	return noBlock(d)
}

// onlySwitch reads a setting without arguments.
func onlySwitch(d *caddyfile.Dispenser, field *bool) error {
	if option := d.Val(); d.NextArg() {
		return d.Errf("%s takes no argument", option)
	}
	*field = true
	return noBlock(d)
}

func noBlock(d *caddyfile.Dispenser) error {
	if d.NextBlock(d.Nesting()) {
		return d.Errf("there is no block here")
	}
	return nil
}

// moduleOption parses a setting whose value is a Caddy module.
func moduleOption(d *caddyfile.Dispenser, given []byte, namespace, inlineKey string) ([]byte, error) {
	option := d.Val()
	if given != nil {
		return nil, d.Errf("%s is given twice", option)
	}
	if !d.NextArg() {
		return nil, d.Errf("%s takes the name of a module", option)
	}
	name := d.Val()
	mod, err := caddyfile.UnmarshalModule(d, namespace+name)
	if err != nil {
		return nil, err
	}
	if inlineKey == "module" {
		if _, ok := mod.(caddy.StorageConverter); !ok {
			return nil, d.Errf("module %s is no storage", name)
		}
	}
	return caddyconfig.JSONModuleObject(mod, inlineKey, name, nil), nil
}

// caddyfileErr is an error at the place of a segment that has been read already.
func caddyfileErr(seg caddyfile.Segment, format string, args ...any) error {
	d := caddyfile.NewDispenser(seg)
	d.Next()
	return d.WrapErr(fmt.Errorf(format, args...))
}
