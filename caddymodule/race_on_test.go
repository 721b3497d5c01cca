//go:build race

package caddymodule

const racing = true
