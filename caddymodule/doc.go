// Package caddymodule puts package flow into Caddy: one file for each place
// where Caddy can be extended, and no decision about tokens in any of them.
//
//	app.go         app "device_flow": owns the sessions of one configuration
//	pool.go        the running sessions of the process, which survive reloads
//	keyed*.go      one login per device: whose a request is, the group of those that
//	               run, what bounds it, its page
//	client.go      the settings of one session, and flow.Config made of them
//	handler.go     "http.handlers.device_flow": no token, no call
//	statuspage.go  "http.handlers.device_flow_status": page, JSON, SSE, health
//	transport.go   "http.reverse_proxy.transport.device_flow": the last hop
//	admin.go       "admin.api.device_flow"
//	storage.go     flow.Store over certmagic.Storage
//	observe.go     flow.Event → log
//	command.go     "caddy device-flow …", over the admin API
//	terminal.go    what a person sees there, and the QR code in text
//	caddyfile.go   the global option and the directive
package caddymodule
