// Command caddy is Caddy with the standard modules and device_flow: what
// xcaddy.sh builds, but from this module's own go.mod, so that a contributor
// can `go run ./cmd/caddy`, set breakpoints and run it with the race detector.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	// Plugged in by import, as in every Caddy main package.
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	_ "github.com/deviceflow/caddy-deviceflow"
)

func main() {
	caddycmd.Main()
}
