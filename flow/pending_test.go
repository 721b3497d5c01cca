package flow

import (
	"fmt"
	"testing"
)

func TestEndedCodesAreRememberedBeyondTheLastOne(t *testing.T) {
	code := func(n int) *pendingLogin { return &pendingLogin{code: NewSecret(fmt.Sprint("code ", n))} }
	var ended endedCodes
	for n := range maxEnded + 2 {
		ended = ended.with(code(n)).with(code(n))
	}
	for n := range maxEnded + 3 {
		if got, want := ended.has(code(n)), n >= 2 && n < maxEnded+2; got != want {
			t.Errorf("code %d: %v, want %v: %s", n, got, want, ended)
		}
	}
	// What an earlier version has stored: one digest.
	if old := endedCodes(code(7).digest()); !old.has(code(7)) || old.has(code(6)) {
		t.Errorf("%s", old)
	}
}
