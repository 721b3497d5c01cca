// Package flowtest is an OAuth 2.0 authorization server for the device grant (RFC 8628), for tests and demonstrations:
// strict, scriptable, and with a memory. It needs the standard library only.
//
//   - Strict: it refuses what an RFC lets it refuse, rotates refresh tokens, ends a login when a token or a device code
//     is used twice, and writes down everything it objects to. A test of a client asserts that nothing was.
//   - Scriptable: any answer can be replaced, delayed, garbled or lost, once or until further notice.
//   - With a memory: every request is kept with its time of arrival.
//
// It is a page for people too: [Server.ServeHTTP] serves the form where a login is approved. And it is an API that
// wants the tokens: [Server.API].
//
// # In a test
//
// [Server.RoundTripper] reaches the server without a network, so that testing/synctest can fake the time. The server
// must be made inside the bubble, and closed before the bubble ends:
//
//	synctest.Test(t, func(t *testing.T) {
//		as := flowtest.New(flowtest.Config{ApproveAfter: 3})
//		defer as.Close()
//		hc := &http.Client{Transport: as.RoundTripper()}
//
//		as.Script(flowtest.Poll, flowtest.ErrorResponse(503, "temporarily_unavailable")) // the first poll finds an outage
//		as.Script(flowtest.Refresh, flowtest.Response{Pass: true, Edit: flowtest.EditJSON(func(m map[string]any) {
//			delete(m, "expires_in") // the first refresh leaves the lifetime open
//		})})
//
//		login(hc, as.Issuer(), "demo-client") // the client under test
//
//		if v := as.Stats().Violations; len(v) > 0 {
//			t.Errorf("the server objects: %q", v)
//		}
//	})
//
// With [Server.Start] or [Server.StartTLS] it listens on a free port of 127.0.0.1, with [Server.Listen] anywhere.
//
// # Endpoints
//
//	                       RFC                      Auth0
//	device authorization   /device_authorization    /oauth/device/code
//	token                  /token                   /oauth/token
//	revocation (RFC 7009)  /revoke                  /oauth/revoke
//	user information       /userinfo                /userinfo
//	approval page          /device                  /activate
//
// Discovery is at /.well-known/oauth-authorization-server (RFC 8414) and /.well-known/openid-configuration. The form's
// elements have the ids user_code, continue, approve and deny; the outcome has the id result, an error the id error.
//
// # Violations
//
//   - at the device, token and revocation endpoints: a method other than POST, a body that is not form-encoded,
//     parameters in the URL or twice (RFC 6749 section 3.2), two client authentication methods at once (section 2.3),
//     credentials that are not encoded as section 2.3.1 says, a missing parameter, an unknown grant type
//   - a poll sooner than one interval after the answer to the last, or after the code was issued; the former is
//     answered slow_down, which adds 5 seconds to that code's interval
//   - two polls at a time with one device code
//   - a poll after a final answer; after tokens were issued it also ends the login (RFC 6749 section 4.1.2)
//   - a refresh token that had been rotated out; it ends the login too (RFC 9700 section 4.14.2)
//   - two refreshes at a time of one login
//   - parameters in the URL of the user information endpoint
//
// A wrong client_id, secret or scope is refused but is no violation: it is the configuration that is wrong, not the
// client's conduct.
//
// # Time
//
// Time is time.Now and timers, nothing else. Tokens and codes expire by the server's clock.
package flowtest
