package caddymodule

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/certmagic"

	_ "github.com/deviceflow/caddy-deviceflow/examples/notify"
)

// redisStandIn takes what the example of Redis says, as the plugin does that the
// example names. Nobody connects to a Redis while a configuration is checked.
type redisStandIn struct {
	Settings map[string][]string `json:"settings,omitempty"`
	Cluster  bool                `json:"cluster,omitempty"`
}

func init() { caddy.RegisterModule(redisStandIn{}) }

func (redisStandIn) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.storage.redis", New: func() caddy.Module { return new(redisStandIn) }}
}

func (s *redisStandIn) CertMagicStorage() (certmagic.Storage, error) {
	return &certmagic.FileStorage{Path: filepath.Join(os.TempDir(), "nobody-writes-here")}, nil
}

// UnmarshalCaddyfile knows the settings of github.com/pberkel/caddy-storage-redis.
func (s *redisStandIn) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	s.Settings = map[string][]string{}
	for d.Next() {
		for _, arg := range d.RemainingArgs() {
			switch arg {
			case "redis":
			case "cluster":
				s.Cluster = true
			default:
				return d.ArgErr()
			}
		}
		for nesting := d.Nesting(); d.NextBlock(nesting); {
			name := d.Val()
			switch name {
			case "address", "host", "port", "username", "password", "db", "timeout", "key_prefix", "encryption_key", "compression", "tls_enabled":
			default:
				return d.Errf("unknown setting %s", name)
			}
			s.Settings[name] = append(s.Settings[name], d.RemainingArgs()...)
			for inner := d.Nesting(); d.NextBlock(inner); {
				s.Settings[name] = append(s.Settings[name], d.Val())
			}
		}
	}
	return nil
}

// TestExamplesAreGoodCaddyfiles takes each Caddyfile that somebody may copy through
// `caddy fmt`, `adapt` and `validate`.
func TestExamplesAreGoodCaddyfiles(t *testing.T) {
	held := secrets(t)
	for name, from := range map[string]string{"encryption_key": "key.txt", "device-flow": "key.txt", "encryption-key": "key.txt", "client-secret": "secret.txt"} {
		b, err := os.ReadFile(filepath.Join("testdata", "caddyfile", from))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(held, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, value := range map[string]string{
		"DEVICE_FLOW_API": "https://api.example.com", "DEVICE_FLOW_AUDIENCE": "https://api.example.com",
		"DEVICE_FLOW_ISSUER": "https://login.example.com", "DEVICE_FLOW_CLIENT_ID": "device",
		"CREDENTIALS_DIRECTORY": held, "REDIS_PASSWORD": "a password",
	} {
		t.Setenv(name, value)
	}
	var files []string
	for _, pattern := range []string{"Caddyfile.example", "examples/*/Caddyfile", "deploy/*/Caddyfile"} {
		found, err := filepath.Glob(filepath.Join("..", filepath.FromSlash(pattern)))
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %d files, %v", pattern, len(found), err)
		}
		files = append(files, found...)
	}
	for _, file := range files {
		t.Run(filepath.ToSlash(file), func(t *testing.T) {
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			text := string(raw)
			if formatted := string(caddyfile.Format(raw)); formatted != text {
				t.Errorf("caddy fmt would make this of it:\n%s", formatted)
			}
			t.Chdir(filepath.Dir(file)) // where the commands stand that it names
			config, err := adapt(t, strings.ReplaceAll(text, "/run/secrets", filepath.ToSlash(held)))
			if err == nil {
				// `tls internal` makes an authority when it is checked: not in the home of who runs this.
				err = provisioned(t, strings.Replace(config, "{", `{"storage": {"module": "file_system", "root": `+strconv.Quote(t.TempDir())+`},`, 1))
			}
			if err != nil {
				t.Error(err)
			}
			if strings.Contains(file, "redis") && (!strings.Contains(config, `"redis-3.example.com:6379"`) || !strings.Contains(config, `"cluster": true`)) {
				t.Errorf("the storage has lost its settings:\n%s", config)
			}
		})
	}
}

// TestEachExampleIsListed compares examples/README.md with what is there.
func TestEachExampleIsListed(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join("..", "examples", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for _, m := range regexp.MustCompile(`\| \[([a-z-]+)\]\(([a-z-]+)/Caddyfile\) \|`).FindAllStringSubmatch(string(raw), -1) {
		if listed[m[1]] = true; m[1] != m[2] {
			t.Errorf("%s leads to %s", m[1], m[2])
		}
	}
	folders, err := filepath.Glob(filepath.Join("..", "examples", "*", "Caddyfile"))
	if err != nil || len(folders) != len(listed) {
		t.Errorf("%d examples are listed and %d are there, %v", len(listed), len(folders), err)
	}
	for _, file := range folders {
		if name := filepath.Base(filepath.Dir(file)); !listed[name] {
			t.Errorf("%s is not listed", name)
		}
	}
}
