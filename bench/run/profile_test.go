package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is measured as the operator's profile is what operators get.
func TestTheProfileIsTheOneThatIsDelivered(t *testing.T) {
	for file, line := range map[string]string{
		"deploy/systemd/performance.conf": "Environment=%s\n",
		"Dockerfile":                      "    %s \\\n",
	} {
		b, err := os.ReadFile(filepath.Join("..", "..", filepath.FromSlash(file)))
		if err != nil {
			t.Fatal(err)
		}
		for _, setting := range profile {
			// The image leaves GOMEMLIMIT to Caddy, which knows the container's.
			if want := strings.Replace(line, "%s", setting, 1); strings.Contains(string(b), want) == (file == "Dockerfile" && strings.HasPrefix(setting, "GOMEMLIMIT")) {
				t.Errorf("%s and %q", file, want)
			}
		}
	}
}
