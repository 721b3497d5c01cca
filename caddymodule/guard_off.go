//go:build unguarded

package caddymodule

// guardOff lets every request pass. It exists only for tests in a browser, which
// have to show that an attack works without the guard, or they could not fail:
// nothing else may build with this tag, and no setting turns the guard off.
const guardOff = true
