// Package e2e tests the product as processes: the real Caddy binary with the
// modules, the demo, a third party's authorization server, callers that speak
// plain HTTP, and a browser.
//
// With Go alone, the tests run against flowtest. Those that need Node.js (the
// npm oidc-provider in provider/) or Chromium skip themselves where it is
// missing, unless DEVICEFLOW_E2E=1 is set: then its absence is a failure, so
// that a CI run cannot pass by testing nothing.
//
// Everything listens on 127.0.0.1, on ports the system gives out, and keeps its
// files in a folder of the test's own. Built binaries are shared by the tests
// of one run and removed with it.
//
// Tests that wait do so together (see parallel). Those that measure time or
// memory, or have Chromium work, run before, one by one.
package e2e
