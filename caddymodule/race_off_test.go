//go:build !race

package caddymodule

const racing = false
