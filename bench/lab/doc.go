// Package lab has what a measurement needs: processes and the kernel's accounting of them, a load of keep-alive
// connections, medians with their spread, pairs that others disturbed, and plots.
//
// Its readings come from /proc, so measuring needs Linux. Nothing here judges a figure.
package lab
