package caddymodule

import (
	"reflect"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// lazyLog has a proxy encode a request for its log when a line is written. Caddy's
// reverse_proxy does so for each request, for a line that only level debug shows, and
// that is a twentieth of all that a request costs. What is written stays the same.
//
// Its logger is nobody else's to set: With where WithLazy would do is one word in
// Caddy. Until that is changed there, the field is set from outside. Of a Caddy that
// has no such field, the proxy stays as it is, and a test fails.
func lazyLog(proxy *reverseproxy.Handler) (done bool) {
	field := reflect.ValueOf(proxy).Elem().FieldByName("logger")
	if !field.IsValid() || field.Type() != reflect.TypeFor[*zap.Logger]() || field.IsNil() {
		return false
	}
	// As the field has just been found to be a *zap.Logger, that is what is there.
	logger := reflect.NewAt(field.Type(), field.Addr().UnsafePointer()).Interface().(**zap.Logger)
	*logger = (*logger).WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core { return lazyCore{core} }))
	return true
}

// lazyCore puts the encoding of fields off until a line is written.
type lazyCore struct{ zapcore.Core }

// With implements zapcore.Core.
func (c lazyCore) With(fields []zapcore.Field) zapcore.Core {
	return zapcore.NewLazyWith(c.Core, fields)
}
