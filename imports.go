// Package deviceflow registers the device_flow modules with Caddy when it is
// imported for its side effects.
//
// It holds nothing else. xcaddy names a module by its path and imports the
// package at that path, so `xcaddy build --with
// github.com/deviceflow/caddy-deviceflow` needs a package here, at the root,
// although the code lives in caddymodule (the Caddy adapters) and flow (the
// OAuth device grant, without Caddy).
package deviceflow

import (
	// The import registers the modules; nothing is called by name.
	_ "github.com/deviceflow/caddy-deviceflow/caddymodule"
)
