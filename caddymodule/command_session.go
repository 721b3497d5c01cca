package caddymodule

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf16"

	"github.com/spf13/cobra"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

// cmdStatus shows one session or, without a name, all.
func cmdStatus(o *operator, cmd *cobra.Command, name string) error {
	all, err := o.list(cmd.Context())
	if err != nil {
		return err
	}
	raw := make([]json.RawMessage, len(all))
	for i, s := range all {
		raw[i] = s.raw
	}
	asJSON, _ := cmd.Flags().GetBool("json")
	if name == "" && (asJSON || len(all) > 1) {
		if asJSON {
			return printJSON(o.out.w, raw)
		}
		o.out.say("%s", table(all, time.Now()))
		return nil
	}
	one, err := o.choose(cmd.Context(), all, name)
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(o.out.w, one.raw)
	}
	o.out.say("%s", described(one.status, time.Now()))
	return nil
}

// table is a line for each session.
func table(all []listed, now time.Time) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "SESSION\tSTATE\tACCOUNT\tWHAT TO DO")
	for _, s := range all {
		who := clean(s.status.Account.Label(), maxCode)
		if who == "" {
			who = "-"
		}
		name := word(s.status.Session)
		if key := clean(s.status.Key, maxCode); key != "" {
			name += " " + key
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", name, s.status.State, who, summary(s.status, now))
	}
	_ = w.Flush() // to memory
	return strings.TrimSuffix(b.String(), "\n")
}

// printJSON writes v for programs, and so that it may be looked at: all but ASCII
// is escaped, for the strings of a login server can steer a terminal.
func printJSON(w io.Writer, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	var b strings.Builder
	for _, r := range string(data) {
		switch {
		case r < 0x7f:
			b.WriteRune(r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	_, err = io.WriteString(w, b.String()+"\n")
	return err
}

// cmdRefresh renews the token now.
func cmdRefresh(o *operator, cmd *cobra.Command, name string) error {
	s, err := o.get(cmd.Context(), name)
	if err != nil {
		return err
	}
	st, _, err := o.post(cmd.Context(), s.status.Session, "refresh")
	if err != nil {
		return err
	}
	if !st.State.Usable() {
		return notDone{errors.New("the refresh brought no usable token: " + summary(st, time.Now()))}
	}
	o.out.say("The token has been renewed.\n\n%s", described(st, time.Now()))
	return nil
}

// cmdLogout forgets and revokes the login.
func cmdLogout(o *operator, cmd *cobra.Command, name string) error {
	s, err := o.get(cmd.Context(), name)
	if err != nil {
		return err
	}
	was := s.status.State
	_, warning, err := o.post(cmd.Context(), s.status.Session, "logout")
	switch {
	case err != nil:
		return err
	case warning != "":
		return notDone{errors.New("the login is forgotten here, but the login server did not confirm its revocation: if that matters, revoke it there")}
	case was == flow.StateLoginRequired:
		o.out.say("Nobody was logged in.")
		return nil
	}
	o.out.say("Logged out. Calls are turned away until somebody logs in again: caddy device-flow login%s", argument(s.status.Session))
	return nil
}
