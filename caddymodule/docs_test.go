package caddymodule

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

var caddyfileBlock = regexp.MustCompile("(?ms)^```caddyfile\n(.*?)^```$")

// secrets are what the pages about providers refer to, as /run/secrets/….
func secrets(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, from := range map[string]string{
		"client-key.pem": "client_key.pem", "client.pem": "client_cert.pem", "client-tls-key.pem": "client_cert_key.pem",
		"gateway-key": "secret.txt", "google": "secret.txt", "keycloak": "secret.txt", "client": "secret.txt",
	} {
		b, err := os.ReadFile(filepath.Join("testdata", "caddyfile", from))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// requireGoodCaddyfiles checks the Caddyfiles in a page, and counts them.
func requireGoodCaddyfiles(t *testing.T, page, text, held string) int {
	t.Helper()
	blocks := caddyfileBlock.FindAllStringSubmatch(text, -1)
	if strings.Count(text, "```caddyfile") != len(blocks) {
		t.Errorf("%s: %d Caddyfiles can be read", page, len(blocks))
	}
	for _, b := range blocks {
		if formatted := string(caddyfile.Format([]byte(b[1]))); formatted != b[1] {
			t.Errorf("%s: caddy fmt would make this of it:\n%s", page, formatted)
		}
		config, err := adapt(t, strings.ReplaceAll(b[1], "/run/secrets", held))
		if err == nil {
			err = provisioned(t, config)
		}
		if err != nil {
			t.Errorf("%s: %v\n%s", page, err, b[1])
		}
	}
	return len(blocks)
}

// So does whoever copies one of the README or of another page.
func TestPagesHoldGoodCaddyfiles(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join("..", "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	held, n := secrets(t), 0
	for _, page := range append(pages, filepath.Join("..", "README.md"), filepath.Join("..", "SECURITY.md")) {
		raw, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		n += requireGoodCaddyfiles(t, page, string(raw), held)
	}
	if n < 3 {
		t.Errorf("only %d Caddyfiles were found", n)
	}
}

// Whoever copies a Caddyfile of docs/providers gets one that `caddy validate` takes.
func TestProviderPagesHoldGoodCaddyfiles(t *testing.T) {
	dir := filepath.Join("..", "docs", "providers")
	pages, err := filepath.Glob(filepath.Join(dir, "*.md"))
	if err != nil || len(pages) == 0 {
		t.Fatalf("no pages: %v", err)
	}
	index, err := os.ReadFile(filepath.Join(dir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	held := secrets(t)
	for _, page := range pages {
		raw, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		if requireGoodCaddyfiles(t, page, string(raw), held) == 0 {
			t.Errorf("%s has no Caddyfile", page)
		}
	}
	for _, usage := range flow.Providers() {
		name, _, _ := strings.Cut(usage, " ")
		raw, err := os.ReadFile(filepath.Join(dir, name+".md"))
		if err != nil || !strings.Contains(string(raw), "provider "+name) {
			t.Errorf("preset %s has no page of its own: %v", name, err)
		}
		if !strings.Contains(string(index), "`provider "+usage+"`") || !strings.Contains(string(index), "("+name+".md)") {
			t.Errorf("preset %s is not in README.md as 'provider %s'", name, usage)
		}
	}
}
