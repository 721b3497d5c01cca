package headroom

import (
	"syscall"
	"unsafe"
)

// Of most systems. Where pages are larger, there is none in the place asked for, and nothing changes.
const hugePage = 2 << 20

// What madvise(2) is told. Package syscall has no names for these.
const (
	adviseHuge   = 14
	adviseNoHuge = 15
)

// memory is where huge pages are asked for. The filler has the heap begin where the first of them does.
type memory struct {
	address uintptr
	filler  []byte
}

// hugePages has the kernel fill the heap behind the ballast with two huge pages instead of a thousand small ones: each
// costs a start 5 to 20 µs, most of all on virtual machines.
func hugePages(ballast []byte) (m memory) {
	end := uintptr(unsafe.Pointer(unsafe.SliceData(ballast))) + uintptr(len(ballast)) //nolint:gosec // a number, nobody follows it
	m.address = (end + hugePage - 1) &^ (hugePage - 1)
	m.advise(adviseHuge)
	m.filler = make([]byte, m.address-end)
	return m
}

// release leaves the huge pages as they are. But the kernel may no longer make one of what Go gives back to it.
func (m *memory) release() {
	m.advise(adviseNoHuge)
	m.filler = nil
}

// advise is an offer: a kernel without huge pages declines.
func (m *memory) advise(what uintptr) {
	_, _, _ = syscall.RawSyscall(syscall.SYS_MADVISE, m.address, 2*hugePage, what)
}
