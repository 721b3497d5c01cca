// Package headroom makes a start cheap: setting up all packages takes most of it, and most of that is memory that is
// touched for the first time.
//
// It must import nothing but runtime and syscall: Go sets up packages without imports first, and those that need little,
// so that this one comes before what allocates. Its variables are set up in their order.
package headroom

import "runtime"

// profileRate is that of the memory profile. A start has no use for it: each sample is one more page.
var profileRate = withoutProfile()

// Cores is how many cores Go would have taken. It gets one, from here on, for each keeps a part of the heap for itself,
// and the start has no use for a second.
var Cores = runtime.GOMAXPROCS(1)

// ballast is a heap that the next collection is measured by: Go first collects at 4 MiB, a little before all packages are
// set up, and walking through their data for it takes a twentieth of the start. Nobody writes to it, so it takes
// addresses and no memory. It is a little more than a multiple of the 4 MiB by which Go has the heap grow, so that there
// are as many behind it.
var ballast = make([]byte, 12<<20+8<<10)

// pages are behind the ballast.
var pages = hugePages(ballast)

// Release gives the headroom up: from here on, the heap has its usual size and its profile. Call it once.
func Release() {
	pages.release()
	ballast = nil
	runtime.MemProfileRate = profileRate
}

func withoutProfile() (rate int) {
	rate, runtime.MemProfileRate = runtime.MemProfileRate, 0
	return rate
}
