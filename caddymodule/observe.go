package caddymodule

import (
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

// observers has each of them hear of an event, whatever becomes of the others: a
// log writer that panics must not take the session's goroutine with it, and so
// the process.
func observers(logger *zap.Logger, all ...flow.Observer) flow.Observer {
	return func(e flow.Event) {
		for _, o := range all {
			survive(logger, "an observer of the session", func() { o(e) })
		}
	}
}

// survive runs f and outlives its panic.
func survive(logger *zap.Logger, what string, f func()) {
	defer func() {
		if p := recover(); p != nil {
			defer func() { _ = recover() }() // it may be the log that panics
			logger.Error(what+" panicked", zap.String("panic", clean(fmt.Sprint(p), maxReason)), zap.Stack("stack"))
		}
	}()
	f()
}

// logObserver writes one line for each change of state, and what else happens
// at debug level. Text from the authorization server stands in fields, where
// the encoders escape it.
func logObserver(logger *zap.Logger) flow.Observer {
	var (
		told   flow.Status
		failed bool // the storage, and that has been said
	)
	return func(e flow.Event) {
		level, msg := describeEvent(e)
		switch {
		case e.Kind == flow.EventStoreHealed:
			failed = false
		case msg == storeFails && failed:
			level, msg = zapcore.InfoLevel, "calls are served, the storage still fails"
		case msg == storeFails:
			failed = true
		}
		if e.Kind == flow.EventStateChanged {
			if told.Session == "" && cameBack(e) {
				level = zapcore.DebugLevel
			}
			told = e.Status
		} else if e.Status == told && e.For == "" {
			level = zapcore.DebugLevel // it came with a change of state, whose line says it all
		}
		ce := logger.Check(level, msg)
		if ce == nil {
			return
		}
		ce.Write(eventFields(e)...)
	}
}

// cameBack reports whether a session of a key has just come into memory with nothing
// amiss. Where there are more devices than fit they come and go with each call.
func cameBack(e flow.Event) bool {
	st := e.Status
	return e.From == flow.StateUnavailable && st.Error == nil && baseName(st.Session) != st.Session &&
		(st.State == flow.StateAuthorized || st.State == flow.StateLoginRequired)
}

// qrObserver draws the QR code of each pending login, once, for people who read
// what Caddy prints. It does not go through the log: every encoder escapes line
// ends, and with a line of the log for each line of the drawing, what stands
// before the message would differ in width.
func qrObserver(out *terminal) flow.Observer {
	var drawn flow.LoginInfo
	return func(e flow.Event) {
		if e.Status.Login == nil || e.Kind != flow.EventLoginPending && e.Kind != flow.EventStateChanged {
			return
		}
		l := *e.Status.Login
		l.ExpiresAt = time.Time{} // another instance's clock may correct it
		if l == drawn {
			return
		}
		drawn = l
		code, ok := terminalQR(&l, out.colour)
		if !ok {
			return
		}
		v := newView(e.Status, time.Now())
		name := ""
		if v.Session != "" {
			name = " of " + v.Session
		}
		// In one piece, so that no line of the log gets into it.
		out.say("%sTo approve the login%s, scan this with a phone, or %s (until %s).", code, name, v.Login.instruction(), v.Login.Expires.UTC)
	}
}

const (
	storeFails  = "the storage fails: the login lives in memory only and would not survive a restart"
	storeSealed = "the stored login is sealed with another encryption_key and is left as it is: put that key back and reload"
)

// describeEvent chooses the level by what a person has to do.
func describeEvent(e flow.Event) (zapcore.Level, string) {
	sealed := e.Status.Error != nil && e.Status.Error.Code == flow.CodeStorageSealed
	switch e.Kind {
	case flow.EventStateChanged:
		switch e.Status.State {
		case flow.StatePending:
			return zapcore.WarnLevel, "a person has to log in: open verification_uri and enter user_code"
		case flow.StateAuthorized:
			return zapcore.InfoLevel, "authorized: calls are served"
		case flow.StateDegraded:
			if x := e.Status.Error; x != nil && x.Code == flow.CodeStorageFailed {
				return zapcore.ErrorLevel, storeFails
			}
			if sealed {
				return zapcore.ErrorLevel, storeSealed
			}
			return zapcore.WarnLevel, "calls are served, but the login cannot be kept fresh"
		case flow.StateUnavailable:
			return zapcore.WarnLevel, "no usable token for now: calls get 503 until the authorization server answers again"
		case flow.StateMisconfigured:
			if sealed {
				return zapcore.ErrorLevel, storeSealed
			}
			return zapcore.ErrorLevel, "the authorization server refuses this client: the configuration has to be fixed, here or there"
		default:
			return zapcore.WarnLevel, "nobody is logged in: open the status page, or call through the proxy, to start a login"
		}
	case flow.EventLoginPending:
		return zapcore.WarnLevel, "a person has to log in: open verification_uri and enter user_code"
	case flow.EventLoginFailed:
		return zapcore.WarnLevel, "the login failed"
	case flow.EventLoggedOut:
		return zapcore.InfoLevel, "logged out"
	case flow.EventIdentified:
		return zapcore.InfoLevel, "the login server has told who is logged in"
	case flow.EventStoreFailed:
		if sealed {
			return zapcore.ErrorLevel, storeSealed
		}
		return zapcore.ErrorLevel, storeFails
	case flow.EventStoreHealed:
		return zapcore.InfoLevel, "the storage works again, the login is saved"
	case flow.EventRefreshFailed:
		var fe *flow.Error
		if e.For != "" && errors.As(e.Err, &fe) && fe.Kind != flow.KindTemporary {
			return zapcore.WarnLevel, "the authorization server refuses a token for another API: correct audience, resource or scope of that site, or allow them there"
		}
		return zapcore.DebugLevel, "the refresh failed"
	default:
		return zapcore.DebugLevel, string(e.Kind)
	}
}

func eventFields(e flow.Event) []zap.Field {
	st := e.Status
	fields := []zap.Field{
		zap.String("session", st.Session),
		zap.String("state", string(st.State)),
	}
	if st.Key != "" {
		fields = append(fields, zap.String("key", clean(st.Key, maxText)))
	}
	if e.From != "" {
		fields = append(fields, zap.String("from", string(e.From)))
	}
	if l := st.Login; l != nil {
		fields = append(fields,
			// No encoder escapes C1 controls, nor what turns the direction of text.
			zap.String("verification_uri", clean(newLink(l.VerificationURI).Full(), maxLink)),
			zap.String("user_code", clean(l.UserCode, maxText)),
			zap.Time("code_expires_at", l.ExpiresAt))
	}
	if name := st.Account.Label(); name != "" && st.State == flow.StateAuthorized {
		fields = append(fields, zap.String("account", name))
	}
	if e.For != "" {
		fields = append(fields, zap.String("for", clean(e.For, maxText)))
	} else if t := st.Token; t != nil && t.ExpiresAt != nil {
		fields = append(fields, zap.Time("token_expires_at", *t.ExpiresAt))
	}
	if e.Took > 0 {
		fields = append(fields, zap.Duration("took", e.Took))
	}
	if x := st.Error; x != nil && e.For == "" {
		fields = append(fields, zap.String("reason", x.Description), zap.String("action", string(x.Action)))
		if x.RetryAt != nil {
			fields = append(fields, zap.Time("retry_at", *x.RetryAt))
		}
	} else if e.Err != nil {
		if fe, ok := errors.AsType[*flow.Error](e.Err); ok { // its text is bounded and cleaned
			fields = append(fields, zap.Error(fe))
		}
	}
	return fields
}
