package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

// restartGrace is how long a Caddy that no longer answers may take to come back: it
// may be restarting.
const restartGrace = 30 * time.Second

// look is how a command that waits sees the session.
type look func(context.Context) (flow.Status, error)

// looking is look for a session of the admin API.
func (o *operator) looking(name string) look {
	return func(ctx context.Context) (flow.Status, error) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second) // a Caddy that hangs is none that answers
		defer cancel()
		s, err := o.get(ctx, name)
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("%w from Caddy's admin API at %s for 10 seconds", errSilent, o.address)
		}
		return s.status, err
	}
}

// cmdLogin gets a code and waits for its approval.
func cmdLogin(o *operator, cmd *cobra.Command, name string) error {
	ctx := cmd.Context()
	s, err := o.get(ctx, name)
	if err != nil {
		return err
	}
	name = s.status.Session
	st, _, err := o.post(ctx, name, "login")
	if err != nil {
		return interrupted(ctx, name, err)
	}
	if st.Login == nil {
		// It was approved by the time that the answer was written, or given up.
		return outcome(o.out, st)
	}
	if noQR, _ := cmd.Flags().GetBool("no-qr"); !noQR {
		if drawn, ok := terminalQR(st.Login, o.out.colour); ok {
			o.out.say("Scan this with a phone, or use the address below.\n\n%s", drawn)
		}
	}
	o.out.say("%s", described(st, time.Now()))
	if noWait, _ := cmd.Flags().GetBool("no-wait"); noWait {
		return nil
	}
	o.out.say("")
	return interrupted(ctx, name, waitForApproval(ctx, o.out, st, o.looking(name)))
}

// waitForApproval returns when the code of st is approved or no longer good.
func waitForApproval(ctx context.Context, out *terminal, st flow.Status, look look) error {
	code, ends := *st.Login, st.Login.ExpiresAt
	if !out.screen {
		out.say("Waiting for approval.")
	}
	line := func() string {
		left := max(time.Until(ends), 0)
		return "Waiting for approval, " + clock(int(left/time.Second)) + " left "
	}
	var silent time.Time // since when
	for {
		if err := out.countFor(ctx, pace, line); err != nil {
			return err
		}
		now, err := look(ctx)
		switch {
		case err != nil && ctx.Err() != nil:
			out.wipe()
			return ctx.Err()
		case err != nil:
			if silent.IsZero() {
				silent = time.Now()
				out.say("%v. Trying on.", err)
			}
			if time.Since(silent) > restartGrace {
				out.wipe()
				return err
			}
			continue
		case now.Login != nil && now.Login.UserCode == code.UserCode && now.Login.VerificationURI == code.VerificationURI:
			ends = now.Login.ExpiresAt
		case now.Login != nil:
			out.wipe()
			return notDone{errors.New("this code is no longer good, and another one is out: caddy device-flow login" + argument(now.Session) + " shows it")}
		case now.State == flow.StateUnavailable && time.Since(ends) < restartGrace:
			// A Caddy that has just started reads the code from its storage.
		default:
			return outcome(out, now)
		}
		silent = time.Time{}
	}
}

// outcome is what came of a code that is out no more.
func outcome(out *terminal, st flow.Status) error {
	e := st.Error
	// A token that works may be that of the login before. Storage is all that can be
	// wrong with a login just made.
	if st.State.Usable() && (e == nil || e.Code == flow.CodeStorageFailed || e.Code == flow.CodeStorageSealed) {
		out.say("%s", described(st, time.Now()))
		return nil
	}
	out.wipe()
	if e == nil {
		return notDone{errors.New("the login was given up: somebody has logged out, or Caddy was reloaded with other settings")}
	}
	w := english().explain(e)
	next := english().nextStep(st, w)
	if st.State == flow.StateLoginRequired {
		next = w.Fix // "get a new code" is said below
	}
	text := join(w.Says, next)
	if detail := clean(e.Description, maxText); detail != "" {
		text += "\nDetails: " + detail
	}
	if st.State == flow.StateLoginRequired {
		text += "\nGet a new code: caddy device-flow login" + argument(st.Session)
	}
	return notDone{errors.New(text)}
}

// interrupted says what Ctrl-C has left behind.
func interrupted(ctx context.Context, name string, err error) error {
	if err == nil || ctx.Err() == nil {
		return err
	}
	return fmt.Errorf("interrupted; a code that is out stays good, and 'caddy device-flow wait%s' goes on waiting", argument(name))
}

// cmdWait waits until calls are served.
func cmdWait(o *operator, cmd *cobra.Command, name string) error {
	timeout, err := cmd.Flags().GetDuration("timeout")
	if err != nil {
		return err
	}
	if timeout < 0 {
		return fmt.Errorf("--timeout %v: use a duration such as 5m, or 0s to look once", timeout)
	}
	if err = waitUntilUsable(cmd.Context(), o.out, timeout, o.looking(name)); err != nil && cmd.Context().Err() != nil {
		return errors.New("interrupted")
	}
	return err
}

// waitUntilUsable looks until calls are served, and once at least.
func waitUntilUsable(ctx context.Context, out *terminal, timeout time.Duration, look look) error {
	var (
		start = time.Now()
		seen  time.Time // when Caddy first answered
		told  string
		why   error // the last look has not done
	)
	for {
		st, err := look(ctx)
		var line, note string
		switch {
		case err != nil && ctx.Err() != nil:
			out.wipe()
			return ctx.Err()
		case err == nil && st.State.Usable():
			out.say("%s: calls are served", st.State)
			return nil
		case err == nil:
			line = string(st.State)
			note = summary(st, time.Now())
			why = notDone{fmt.Errorf("%s: %s", line, note)}
			if st.Login != nil {
				line += " " + st.Login.UserCode // its time left is no change of state
			} else {
				line += " " + note
			}
		default:
			line, note, why = err.Error(), err.Error(), err
		}
		if err == nil || errors.Is(err, errNoSession) {
			if seen.IsZero() {
				seen = time.Now()
			}
			// A Caddy that starts has its admin API before its sessions.
			if err != nil && time.Since(seen) >= pace {
				out.wipe()
				return err
			}
		} else if !errors.Is(err, errSilent) {
			out.wipe()
			return err
		}
		left := timeout - time.Since(start)
		if left <= 0 {
			out.wipe()
			if timeout > 0 {
				why = fmt.Errorf("after %v, calls are still not served: %w", timeout, why)
			}
			return why
		}
		if line != told {
			if err == nil {
				out.say("%s: %s", st.State, note)
			} else {
				out.say("%s", note)
			}
			told = line
		}
		err = out.countFor(ctx, min(pace, left), func() string { // the last look is at the very end
			return "Waiting, " + clock(int((timeout-time.Since(start))/time.Second)) + " left "
		})
		if err != nil {
			return err
		}
	}
}
