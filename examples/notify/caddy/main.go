// Command caddy is Caddy with device_flow and the notify handler:
//
//	go build -o caddy ./examples/notify/caddy
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	// Plugged in by import, as in every Caddy main package.
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	_ "github.com/deviceflow/caddy-deviceflow"
	_ "github.com/deviceflow/caddy-deviceflow/examples/notify"
)

func main() {
	caddycmd.Main()
}
