package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

// onlyAlice is the short form for one account.
func onlyAlice(claim, value string) string {
	return strings.Replace(site("device", "openid offline_access"), "client_id", "account "+claim+" "+value+"\n\t\tclient_id", 1)
}

// TestAnotherAccountIsRefusedAndShown has somebody approve with the wrong account: not one call leaves with their token,
// the token is revoked, and the page says what happened. A stored login is held against a changed setting.
func TestAnotherAccountIsRefusedAndShown(t *testing.T) {
	parallel(t)
	tab := startBrowser(t)
	as := startAS(t, time.Hour, byHand)
	a := startAPI(t, as.ValidToken)
	c := startCaddy(t, onlyAlice("email", "alice@example.com"), as.Issuer(), a.URL)
	browse(t, tab, "opening the page", chromedp.Navigate(c.url+"/.device-flow"))

	code := c.callForCode(t).UserCode
	if err := as.ApproveAs(code, flowtest.User{Subject: "auth0|bob", Name: "Bob", Email: "bob@example.com"}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, tab, `document.body.innerText.includes('wrong account')`)
	text := evaluate[string](t, tab, `document.body.innerText`)
	for _, want := range []string{"bob@example.com", "alice@example.com", "Get a new code"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not say %q:\n%s", want, text)
		}
	}
	if st := c.status(t); st.State != "login_required" || st.Error == nil || st.Error.Code != "wrong_account" || st.Account != nil {
		t.Errorf("the status is %+v, error %+v", st, st.Error)
	}
	if p := c.problem(t); p.UserCode != "" || !strings.Contains(p.Detail, "Another account") {
		t.Errorf("a caller is told %+v", p)
	}
	eventually(t, patience, "the refused login is revoked", func() bool { return as.Stats().Revocations == 1 })
	if n := len(a.requests()); n != 0 {
		t.Errorf("%d calls have left", n)
	}
	for path, stored := range filesBelow(t, recordsOf(c)) {
		if strings.Contains(stored, "_token\"") {
			t.Errorf("%s holds the refused login", path)
		}
	}

	evaluate[chromedp.Void](t, tab, `document.querySelector('form[action$="login"] button').click()`)
	eventually(t, patience, "a new code", func() bool { return len(as.Pending()) == 1 })
	if err := as.Approve(as.Pending()[0]); err != nil {
		t.Fatal(err)
	}
	waitFor(t, tab, `!!document.documentElement?.textContent.includes('Alice Example')`) // none while a page is loading
	c.login(t)

	// The same account by another claim: nobody has to log in again. Another one: nobody is logged in.
	codes := as.Stats().DeviceRequests
	c.reload(t, onlyAlice("sub", "auth0|alice"))
	if res := get(t, client(t), c.url+"/", ""); res.status != 200 {
		t.Errorf("the account is the same, and a call gets %d %s", res.status, res.body)
	}
	calls := len(a.requests())
	c.reload(t, onlyAlice("sub", "auth0|carol"))
	eventually(t, patience, "the login of another account is not used", func() bool { return c.status(t).State == "login_required" })
	if st := c.status(t); st.Error == nil || st.Error.Code != "wrong_account" {
		t.Errorf("the status is %+v", st)
	}
	c.reload(t, onlyAlice("sub", "auth0|alice"))
	c.login(t)
	if n := as.Stats().DeviceRequests; n != codes {
		t.Errorf("%d codes were asked for, want %d", n, codes)
	}
	if n := len(a.requests()); n != calls+1 {
		t.Errorf("%d calls have left, want one", n-calls)
	}
	if n := as.Stats().Revocations; n != 1 {
		t.Errorf("%d revocations, want 1", n)
	}
}
