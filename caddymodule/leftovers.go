package caddymodule

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

const (
	// leftoverAge makes a file old enough to be nobody's, by the clock of the file
	// system. Instances whose clocks stamp their files may be wrong by minutes.
	leftoverAge = 30 * time.Minute
	// sweepAgain is when a younger one is looked at once more: no write takes so long.
	sweepAgain = time.Minute + 10*time.Second
)

// leftovers removes what writes of killed processes have left behind: such a file can
// hold tokens that nobody would ever delete. But another instance may be writing one
// just now, and if it is taken away the login that it holds is lost. This instance's
// own clock tells nothing about that: it may be ahead.
type leftovers struct {
	folder string

	mu   sync.Mutex           // a storage can hang for longer than it takes until second
	seen map[string]time.Time // when each was written, at the first look
}

// leftoversOf is nil for a storage that is none of files.
func leftoversOf(s flow.Store) *leftovers {
	ours, _ := s.(store)
	fs, ok := ours.Storage.(*certmagic.FileStorage)
	if !ok {
		return nil
	}
	return &leftovers{folder: fs.Filename(storageFolder), seen: make(map[string]time.Time)}
}

// isLeftover reports whether a temporary file of FileStorage is called so. Its name
// is random, our own have a .json in them.
func isLeftover(name string) bool { return strings.TrimLeft(name, "0123456789") == "" }

// first removes what is old, and remembers the rest for second.
func (l *leftovers) first() {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := sync.OnceValue(l.clock)
	l.each(func(path string, written time.Time) {
		if now().Sub(written) > leftoverAge {
			_ = os.Remove(path)
			return
		}
		l.seen[path] = written
	})
}

// second removes what has not changed since first.
func (l *leftovers) second() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.each(func(path string, written time.Time) {
		if before, ok := l.seen[path]; ok && before.Equal(written) {
			_ = os.Remove(path)
		}
	})
}

func (l *leftovers) each(f func(path string, written time.Time)) {
	entries, err := os.ReadDir(l.folder)
	if err != nil {
		return // nothing has ever been stored
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() && isLeftover(e.Name()) {
			f(filepath.Join(l.folder, e.Name()), info.ModTime())
		}
	}
}

// clock is the time at which the file system stamps a file that is written now, or
// zero: then nothing is old.
func (l *leftovers) clock() (now time.Time) {
	probe, err := os.CreateTemp(l.folder, "") // called like a leftover, in case we are killed
	if err != nil {
		return now
	}
	if info, err := probe.Stat(); err == nil {
		now = info.ModTime()
	}
	_ = probe.Close()
	_ = os.Remove(probe.Name())
	return now
}
