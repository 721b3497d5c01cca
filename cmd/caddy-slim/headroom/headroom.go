// Package headroom spares a start the garbage collector. Setting up all packages allocates a little more than the 4 MiB
// at which Go first collects, and walking through the packages' data for it takes a twentieth of the start.
//
// It must import nothing: Go sets up the packages without imports first, so that this one comes before what allocates.
package headroom

// ballast is a heap that the next collection is measured by. Nobody writes to it, so it takes addresses and no memory.
var ballast = make([]byte, 16<<20)

// Release gives the headroom up: from the next collection on, the heap has its usual size. Call it once.
func Release() { ballast = nil }
