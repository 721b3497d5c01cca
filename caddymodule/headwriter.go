package caddymodule

import (
	"io"
	"net/http"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// headWriter has a last look at the header of an answer, when all that the handlers
// behind have to say about it is there. Informational answers go by unseen.
type headWriter struct {
	*caddyhttp.ResponseWriterWrapper
	last func(status int, h http.Header)
	out  bool
}

func newHeadWriter(w http.ResponseWriter, last func(status int, h http.Header)) *headWriter {
	return &headWriter{ResponseWriterWrapper: &caddyhttp.ResponseWriterWrapper{ResponseWriter: w}, last: last}
}

func (w *headWriter) look(status int) {
	if !w.out {
		w.out = true
		w.last(status, w.Header())
	}
}

func (w *headWriter) WriteHeader(status int) {
	if status >= 200 || status == http.StatusSwitchingProtocols {
		w.look(status)
	}
	w.ResponseWriterWrapper.WriteHeader(status)
}

func (w *headWriter) Write(p []byte) (int, error) {
	w.look(http.StatusOK)
	return w.ResponseWriterWrapper.Write(p)
}

func (w *headWriter) ReadFrom(r io.Reader) (int64, error) {
	w.look(http.StatusOK)
	return w.ResponseWriterWrapper.ReadFrom(r)
}

// FlushError is for http.ResponseController, which would otherwise reach past this.
func (w *headWriter) FlushError() error {
	w.look(http.StatusOK)
	return http.NewResponseController(w.ResponseWriter).Flush()
}
