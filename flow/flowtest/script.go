package flowtest

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Response is a scripted answer. The zero value is an empty 200.
type Response struct {
	// Status is the HTTP status; 0 means 200.
	Status int
	// Header is the answer's. Without a Content-Type, a body that begins with { or [ is application/json, and any
	// other is what it looks like.
	Header http.Header
	Body   string

	// Delay comes before everything else. If the client leaves meanwhile, nothing else happens.
	Delay time.Duration
	// Hang never answers: it waits until the client leaves or the server closes.
	Hang bool
	// Drop closes the connection without an answer; in memory, RoundTrip fails with a connection reset.
	Drop bool

	// Pass lets the server do the real thing. With Drop or Hang it acts and the answer is lost on the way; Edit can
	// change the answer.
	Pass bool
	// Edit rewrites the body of the real answer; it goes with Pass. See EditJSON.
	Edit func(body []byte) []byte

	// Func, if set, answers in place of Status, Header and Body. The body of the request has been read; its
	// parameters are in r.PostForm.
	Func func(w http.ResponseWriter, r *http.Request)
}

// ErrorResponse is the OAuth error answer with that status and error code (RFC 6749 section 5.2).
func ErrorResponse(status int, code string) Response {
	body, err := json.Marshal(map[string]string{"error": code})
	if err != nil {
		panic(err) // a map of strings always encodes
	}
	return Response{Status: status, Body: string(body)}
}

// EditJSON makes a function for Response.Edit of one that changes the decoded JSON object. A value may be a
// json.RawMessage, which is written as it stands.
func EditJSON(change func(body map[string]any)) func([]byte) []byte {
	return func(body []byte) []byte {
		var m map[string]any
		if err := json.Unmarshal(body, &m); err != nil {
			return body
		}
		change(m)
		out, err := json.Marshal(m)
		if err != nil {
			panic("flowtest: EditJSON: " + err.Error()) // the test put in something that is not JSON
		}
		return out
	}
}

// Script queues answers for the next requests of a step, one each. A script for Poll or Refresh goes before one for
// Token. A scripted answer to a poll counts like a real one: slow_down raises the interval, and a final error or an
// access token ends the device code.
func (s *Server) Script(step Step, responses ...Response) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queued[step] = append(s.queued[step], responses...)
}

// ScriptAlways answers every request of a step so, once its queue is empty, until Unscript: an outage.
func (s *Server) ScriptAlways(step Step, response Response) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.always[step] = response
}

// Unscript drops the queue and the standing answer of a step. Requests already hanging go on hanging.
func (s *Server) Unscript(step Step) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.queued, step)
	delete(s.always, step)
}

// nextLocked takes the scripted answer for a step, if there is one.
func (s *Server) nextLocked(step Step) (Response, bool) {
	steps := []Step{step}
	if step == Poll || step == Refresh {
		steps = append(steps, Token)
	}
	for _, st := range steps {
		if q := s.queued[st]; len(q) > 0 {
			s.queued[st] = q[1:]
			return q[0], true
		}
		if res, ok := s.always[st]; ok {
			return res, true
		}
	}
	return Response{}, false
}

// wait blocks for d, or for ever if d is negative, and reports false if the client left or the server closed.
func (s *Server) wait(r *http.Request, d time.Duration) bool {
	var fire <-chan time.Time
	if d >= 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		fire = timer.C
	}
	select {
	case <-fire:
		return true
	case <-r.Context().Done():
	case <-s.life.Done():
	}
	return false
}

// play gives the scripted answer. It runs serve, the true behaviour, only for Pass. Leaving without an answer is a panic
// with http.ErrAbortHandler, which net/http and the in-memory transport both understand.
func (s *Server) play(r *http.Request, res Response, serve func() reply) reply {
	if res.Delay > 0 && !s.wait(r, res.Delay) {
		panic(http.ErrAbortHandler)
	}
	var out reply
	switch {
	case res.Pass:
		out = serve()
		if res.Edit != nil {
			out.body = res.Edit(out.body)
		}
	case res.Func != nil:
		out = reply{custom: res.Func}
	default:
		out = res.reply()
	}
	if res.Hang {
		s.wait(r, -1)
	}
	if res.Hang || res.Drop {
		panic(http.ErrAbortHandler)
	}
	return out
}

func (res Response) reply() reply {
	out := reply{status: res.Status, header: res.Header.Clone(), body: []byte(res.Body)}
	if out.status == 0 {
		out.status = http.StatusOK
	}
	if out.header == nil {
		out.header = http.Header{}
	}
	if _, set := out.header["Content-Type"]; !set && res.Body != "" {
		kind := http.DetectContentType(out.body)
		if strings.HasPrefix(res.Body, "{") || strings.HasPrefix(res.Body, "[") {
			kind = "application/json"
		}
		out.header.Set("Content-Type", kind)
	}
	return out
}

// reply is an answer before it is written, so that it can be edited, lost or recorded.
type reply struct {
	status int
	header http.Header
	body   []byte
	custom func(http.ResponseWriter, *http.Request)
}

func (p reply) write(w http.ResponseWriter, r *http.Request) {
	if p.custom != nil {
		p.custom(w, r)
		return
	}
	for name, values := range p.header {
		w.Header()[name] = slices.Clone(values)
	}
	if w.Header().Get("Content-Length") == "" && p.status != http.StatusNoContent && p.status != http.StatusNotModified {
		w.Header().Set("Content-Length", strconv.Itoa(len(p.body)))
	}
	w.WriteHeader(p.status)
	if len(p.body) > 0 {
		_, _ = w.Write(p.body) // the client may have left; there is nobody to tell
	}
}

func jsonReply(status int, v any) reply {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err) // only maps of plain values come here
	}
	return reply{status: status, body: body, header: http.Header{
		"Content-Type":           {"application/json"},
		"Cache-Control":          {"no-store"}, // RFC 6749 section 5.1
		"Pragma":                 {"no-cache"},
		"X-Content-Type-Options": {"nosniff"},
	}}
}

func errorReply(status int, code, description string) reply {
	return jsonReply(status, map[string]string{"error": code, "error_description": description})
}
