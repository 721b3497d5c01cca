package e2e

import (
	"testing"
	"time"
)

// TestCodeShownIn1970OutlivesTheCorrection has an operator with a code in hand when a new machine learns the time.
func TestCodeShownIn1970OutlivesTheCorrection(t *testing.T) {
	parallel(t, clockCaddy)
	as := startAS(t, time.Hour, byHand)
	c := newCaddy(t, site("device", "offline_access"), as.Issuer(), startAPI(t, as.ValidToken).URL)
	clock := newWallClock(t, c)
	clock.set(t, beginning())
	c.start(t)
	code := c.callForCode(t).UserCode
	<-time.After(2 * time.Second)
	clock.set(t, 0)
	<-time.After(3 * time.Second) // the session looks at the clock once a second
	if got := c.status(t); got.State != "pending" || got.Login == nil || got.Login.UserCode != code {
		t.Errorf("with the clock right, %v before the code runs out, the status is %s %+v", 14*time.Minute, got.State, got.Error)
	}
	if err := as.Approve(code); err != nil {
		t.Fatal(err)
	}
	c.login(t)
	if got := as.Stats(); got.DeviceRequests != 1 || got.Logins != 1 {
		t.Errorf("%d codes and %d logins, want 1 and 1", got.DeviceRequests, got.Logins)
	}
}
