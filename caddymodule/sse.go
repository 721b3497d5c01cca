package caddymodule

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow"
)

const (
	// maxStreams bounds the viewers of one page: each holds a connection and a goroutine.
	maxStreams = 256
	// keepAlive is shorter than the idle time-outs of proxies on the way.
	keepAlive = 15 * time.Second
	// streamWriteTimeout drops a viewer who no longer reads.
	streamWriteTimeout = 10 * time.Second
)

// events streams the status: at once, then at each change.
func (p *page) events(w http.ResponseWriter, r *http.Request, s watcher) {
	out, tick, leave := p.stream(w, r)
	if out == nil {
		return
	}
	defer leave()
	st, changed := s.Watch()
	err := out.status(st)
	var ended <-chan struct{} // a viewer is back at once, and finds its successor
	if s, ok := s.(interface{ Done() <-chan struct{} }); ok {
		ended = s.Done()
	}
	for err == nil {
		select {
		case <-changed:
			st, changed = s.Watch()
			err = out.status(st)
		case <-tick:
			if ranOut(st) {
				// The page is still open: whoever it is may want the next code. The
				// session sees to it that nobody for ever means ever fewer of them.
				s.Demand()
			}
			err = out.alive()
		case <-r.Context().Done():
			return
		case <-p.done:
			return
		case <-ended:
			return
		}
	}
}

// stream begins a stream of events with a place among the viewers, which leave
// gives back. It is nil where there is none, and the request has its answer.
func (p *page) stream(w http.ResponseWriter, r *http.Request) (out *stream, tick <-chan time.Time, leave func()) {
	h := w.Header()
	if p.streams.Add(1) > maxStreams {
		p.streams.Add(-1)
		h.Set("Retry-After", "30")
		p.refuse(w, r, http.StatusServiceUnavailable, "too-many-viewers")
		return nil, nil, nil
	}
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no")
	out = &stream{w, http.NewResponseController(w)}
	if r.Method == http.MethodHead {
		w.WriteHeader(http.StatusOK)
	} else if out.send([]byte("retry: 2000\n\n")) == nil {
		t := time.NewTicker(keepAlive)
		return out, t.C, func() { t.Stop(); p.streams.Add(-1) }
	}
	p.streams.Add(-1)
	return nil, nil, nil
}

// ranOut reports whether the last code ended because nobody approved it in time.
func ranOut(st flow.Status) bool {
	return st.State == flow.StateLoginRequired && st.Error != nil && st.Error.Code == "expired_token"
}

// stream writes server-sent events.
type stream struct {
	w  http.ResponseWriter
	rc *http.ResponseController
}

// status sends st as one event. JSON has no raw line end, so whatever a server
// put into a field, it stays within the one data line.
func (s stream) status(st flow.Status) error {
	data, err := json.Marshal(st)
	if err != nil {
		return err
	}
	return s.send(fmt.Appendf(nil, "event: status\ndata: %s\n\n", data))
}

// alive keeps what is between here and the viewer from closing an idle connection.
func (s stream) alive() error { return s.send([]byte(": keep-alive\n\n")) }

// send writes and flushes within streamWriteTimeout. The deadline is taken back
// afterwards: HTTP/2 resets a stream when it passes, even with nothing to write.
func (s stream) send(b []byte) error {
	if err := s.rc.SetWriteDeadline(time.Now().Add(streamWriteTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	if _, err := s.w.Write(b); err != nil {
		return err
	}
	if err := s.rc.Flush(); err != nil {
		return err
	}
	_ = s.rc.SetWriteDeadline(time.Time{})
	return nil
}
