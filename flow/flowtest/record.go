package flowtest

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"
)

// Step names what a request is for. It selects a script, and is recorded with each request.
type Step string

// The steps. Poll and Refresh are hits of the token endpoint with those grant types; Token means any hit of the token
// endpoint when scripting and counting, and is recorded for hits that are neither.
const (
	Discovery Step = "discovery"
	Device    Step = "device"
	Token     Step = "token"
	Poll      Step = "poll"
	Refresh   Step = "refresh"
	Revoke    Step = "revoke"
	UserInfo  Step = "userinfo"
	Page      Step = "page" // the approval page
	API       Step = "api"  // requests to Server.API; recorded in APIRequests, not in Requests
)

// recordLimit bounds the memory of a server that runs for long or under load; the counts stay exact.
const recordLimit = 10_000

// Request is one request as the authorization server received it.
type Request struct {
	Step   Step // empty for a path that does not exist
	Time   time.Time
	Method string
	Path   string
	Header http.Header
	Form   url.Values // body parameters, as sent (query parameters for GET)
	Status int        // as answered; 0 while, or if, there was no answer
}

// Stats counts what happened since the server was made.
type Stats struct {
	DeviceRequests int // requests to the device authorization endpoint
	Polls          int // polls of the token endpoint
	Logins         int // polls answered with tokens
	Refreshes      int // refreshes answered with tokens
	Reuses         int // presentations of a refresh token that had been rotated out
	Revocations    int // tokens revoked by the client

	// Violations holds a line for all that a strict server objects to: see the package documentation. A client that
	// behaves leaves it empty.
	Violations []string
}

// Requests returns the requests received so far, oldest first (at most the last 10,000).
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Request, len(s.requests))
	for i, r := range s.requests {
		out[i] = *r
		out[i].Header = r.Header.Clone()
		out[i].Form = cloneForm(r.Form)
	}
	return out
}

// Count returns how many requests of a step came in; Token counts polls and refreshes too.
func (s *Server) Count(step Step) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.counts[step]
	if step == Token {
		n += s.counts[Poll] + s.counts[Refresh]
	}
	return n
}

// Stats returns the counts so far.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.stats
	out.Violations = slices.Clone(s.stats.Violations)
	return out
}

func (s *Server) recordLocked(r *Request) {
	s.counts[r.Step]++
	s.requests = appendBounded(s.requests, r)
}

func (s *Server) violateLocked(format string, args ...any) {
	s.stats.Violations = appendBounded(s.stats.Violations, fmt.Sprintf(format, args...))
}

// appendBounded drops the older half when the limit is reached, so that appending stays cheap.
func appendBounded[T any](list []T, v T) []T {
	if len(list) >= recordLimit {
		list = slices.Delete(list, 0, recordLimit/2)
	}
	return append(list, v)
}

func cloneForm(form url.Values) url.Values {
	return url.Values(http.Header(form).Clone())
}
