// Package caddymodule puts package flow into Caddy, and takes no decision about
// tokens. Where it plugs in:
//
//	app.go         app "device_flow": owns the sessions of one configuration
//	handler.go     "http.handlers.device_flow": guard, and no token, no call
//	statuspage.go  "http.handlers.device_flow_status": page, JSON, SSE, health
//	transport.go   "http.reverse_proxy.transport.device_flow": the last hop
//	admin.go       "admin.api.device_flow"
//	caddyfile.go   the global option and the directives
//	command.go     "caddy device-flow …", over the admin API
//
// docs/architecture.md has the other files, and why the house is built so.
package caddymodule
