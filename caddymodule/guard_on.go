//go:build !unguarded

package caddymodule

const guardOff = false
