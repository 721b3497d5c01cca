package caddymodule

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

// terminal is where a command writes to: a person's screen, or a pipe or a log
// that is read later. It writes plain lines; only a screen gets a line that
// counts, and colours around a QR code.
type terminal struct {
	w      io.Writer
	screen bool // somebody may be watching
	colour bool
	line   int // how much of the line that counts is on the screen
}

// colourless are terminals of which it is known, or likely, that they have none.
var colourless = []string{"", "dumb", "unknown", "vt52", "vt100", "vt102", "vt220"}

func newTerminal(w io.Writer) *terminal {
	t := &terminal{w: w}
	f, ok := w.(*os.File)
	if !ok {
		return t
	}
	// The null device counts as a screen, too, which does no harm.
	info, err := f.Stat()
	t.screen = err == nil && info.Mode()&os.ModeCharDevice != 0
	t.colour = t.screen && os.Getenv("NO_COLOR") == "" && !slices.Contains(colourless, os.Getenv("TERM"))
	return t
}

// say writes text of one or several lines. Its strings have been cleaned.
func (t *terminal) say(format string, args ...any) {
	t.wipe()
	_, _ = fmt.Fprintf(t.w, format+"\n", args...) // nobody is there to be told
}

// count writes the line that counts in place of the one before. It does without
// any control sequence but the carriage return.
func (t *terminal) count(text string) {
	if !t.screen {
		return
	}
	_, _ = fmt.Fprint(t.w, "\r"+text+strings.Repeat(" ", max(0, t.line-len(text))))
	t.line = len(text)
}

// countFor counts each second for as long as d, unless ctx ends.
func (t *terminal) countFor(ctx context.Context, d time.Duration, line func() string) error {
	end, tick := time.NewTimer(d), time.NewTicker(time.Second)
	defer end.Stop()
	defer tick.Stop()
	for {
		t.count(line())
		select {
		case <-tick.C:
		case <-end.C:
			return nil
		case <-ctx.Done():
			t.wipe()
			return ctx.Err()
		}
	}
}

// wipe makes room where the line that counts is.
func (t *terminal) wipe() {
	if t.line > 0 {
		_, _ = fmt.Fprint(t.w, "\r"+strings.Repeat(" ", t.line)+"\r")
		t.line = 0
	}
}

// described is the plain text of the status page, with the next step as a command.
func described(st flow.Status, now time.Time) string {
	v := newView(st, now)
	button := v.Button
	v.Button = ""
	text := strings.TrimSuffix(v.plain(), "\n")
	if button != "" {
		text += "\n\n" + pad(button) + "caddy device-flow login" + argument(st.Session)
	}
	return text
}

// summary says in one line what a session needs.
func summary(st flow.Status, now time.Time) string {
	v := newView(st, now)
	switch {
	case v.Login != nil:
		return v.Login.instruction() + " (good for " + v.Login.LeftWords + ")"
	case st.State == flow.StateLoginRequired:
		why := ""
		if st.Error != nil {
			why = v.Title + ". "
		}
		return why + v.Button + ": caddy device-flow login" + argument(st.Session)
	case st.State == flow.StateAuthorized:
		return "nothing to do"
	}
	return join(v.Trouble, v.Next)
}

// instruction is what a person does with a code.
func (l *loginView) instruction() string {
	return "open " + l.Link.Full() + " and enter " + l.Code
}

// argument is a session's name behind a command that is printed.
func argument(name string) string {
	if name == flow.DefaultName {
		return ""
	}
	return " " + word(name)
}

// word is a name fit to be printed, and to be pasted into a shell.
func word(name string) string {
	name = clean(name, maxCode)
	for _, r := range name {
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/@", r) {
			return "'" + strings.ReplaceAll(name, "'", `'\''`) + "'"
		}
	}
	return name
}
