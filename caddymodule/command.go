package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:      "device-flow",
		Usage:     "<command>",
		Short:     "Shows and operates the logins of device_flow",
		Long:      deviceFlowHelp,
		CobraFunc: buildCommand,
	})
}

var deviceFlowHelp = `
Shows and operates the logins (sessions) of a running Caddy with device_flow,
over Caddy's admin API. Without a name, a command means the session "default",
or else the only one there is.

If the admin API is not at '` + caddy.DefaultAdminListen + `', give its --address, or the
--config that Caddy runs with. In a container, run the command inside of it:

  $ docker compose exec proxy caddy device-flow login

Exit status:
  0  done
  1  it could not be done: Caddy is not there, no such session, the login
     server is not there or objects
  2  it was tried, and the answer is no: the code was refused or ran out, the
     session was not usable in time, a revocation was not confirmed`

// notDone is an answer, as opposed to a failure: exit status 2.
type notDone struct{ error }

// exitNotDone is the exit status of a notDone.
const exitNotDone = 2

// buildCommand adds the subcommands of `caddy device-flow`.
func buildCommand(root *cobra.Command) {
	root.Example = `  $ caddy device-flow status
  $ caddy device-flow login
  $ caddy device-flow wait acme --timeout 5m && ./scan`
	root.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return fmt.Errorf("there is no command %q; 'caddy device-flow --help' lists them", args[0])
		}
		return nil
	}
	root.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }

	status := overAdmin("status", "Shows what state the logins are in and what to do next", `
Shows the state of a session, in the words of its status page. Without a name,
and if there are several, it lists all of them.

With --json it prints what the admin API says: one object for a session that is
named, else the list of all. Whether calls are served is the member "state";
'caddy device-flow wait --timeout 0s' tells it by the exit status.`, `  $ caddy device-flow status
  $ caddy device-flow status acme --json`, cmdStatus)
	status.Flags().Bool("json", false, "Print the JSON of the admin API")

	login := overAdmin("login", "Gets a code and waits until it is approved", `
Asks for a code, shows where to enter it, also as a QR code for a phone, and
waits until the login is approved, refused, or the code has run out. A code that
is out already is shown again.

If somebody is logged in, the present login stays in use until the new one has
been approved. Ctrl-C ends the waiting only: the code stays good.`, `  $ caddy device-flow login
  $ caddy device-flow login acme --no-wait`, cmdLogin)
	login.Flags().Bool("no-wait", false, "Show the code and end")
	login.Flags().Bool("no-qr", false, "Draw no QR code, for a terminal without block characters")

	wait := overAdmin("wait", "Waits until calls are served", `
Waits until the session has a usable token, so that what is started next finds
its calls served. It starts no login by itself, and prints a line for each change
of state. It also waits for a Caddy that is still starting.`, `  $ caddy device-flow wait && ./scan
  $ caddy device-flow wait acme --timeout 30s
  $ caddy device-flow wait --timeout 0s   # only looks`, cmdWait)
	wait.Flags().Duration("timeout", 5*time.Minute, "How long to wait")

	root.AddCommand(status, login, wait,
		overAdmin("refresh", "Renews the access token now", `
Trades the refresh token for new tokens now. Caddy does that by itself before the
access token expires; this is for trying whether it works.`, `  $ caddy device-flow refresh`, cmdRefresh),
		overAdmin("logout", "Forgets the login and revokes it", `
Forgets the login here and asks the login server to revoke it. Calls are turned
away until somebody logs in again.`, `  $ caddy device-flow logout acme`, cmdLogout),
		proxyCommand())
}

// overAdmin makes a subcommand that talks to a running Caddy about a session.
func overAdmin(name, short, long, example string, run func(*operator, *cobra.Command, string) error) *cobra.Command {
	cmd := &cobra.Command{
		Use:     name + " [name]",
		Short:   short,
		Long:    long,
		Example: example,
		Args:    cobra.MaximumNArgs(1),
	}
	cmd.Flags().String("address", "", "Where the admin API listens, as host:port or unix//path")
	cmd.Flags().StringP("config", "c", "", "File that Caddy runs with, which says the same; not needed with --address")
	cmd.Flags().StringP("adapter", "a", "", "Adapter to read --config with, where the name of the file does not tell")
	cmd.ValidArgsFunction = completeName
	cmd.RunE = plainly(func(cmd *cobra.Command, args []string) error {
		o, err := newOperator(cmd)
		if err != nil {
			return err
		}
		args = append(args, "")
		return run(o, cmd, args[0])
	})
	return cmd
}

// plainly runs a command so that Ctrl-C ends its context, and reports its error
// as a line of text: Caddy would log it, in JSON where nobody watches.
func plainly(run func(*cobra.Command, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		cmd.SetContext(ctx)
		err := run(cmd, args)
		if err == nil {
			return nil
		}
		cmd.SilenceErrors = true
		cmd.PrintErrln("Error: " + err.Error())
		if !errors.As(err, new(notDone)) {
			return err
		}
		// Only Caddy can make an error that carries an exit status.
		return caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) { return exitNotDone, nil })(cmd, args)
	}
}

// completeName offers the names of the sessions to the shell.
func completeName(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	o, err := newOperator(cmd)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second) // somebody has pressed a key
	defer cancel()
	all, err := o.list(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []cobra.Completion
	for _, s := range all {
		// What cleaning changes cannot be given on a command line either.
		if name := clean(s.status.Session, maxCode); name == s.status.Session {
			names = append(names, cobra.CompletionWithDesc(name, string(s.status.State)))
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
