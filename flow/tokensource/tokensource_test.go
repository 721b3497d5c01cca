package tokensource_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/oauth2"

	"github.com/deviceflow/caddy-deviceflow/flow"
	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
	"github.com/deviceflow/caddy-deviceflow/flow/tokensource"
)

func TestMain(m *testing.M) {
	// The example shows what programs do, and they leave net/http's pool alone.
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		os.Exit(code)
	}))
}

// api answers whoever brings a token for its own URL.
func api(as *flowtest.Server, what string) (url string, end func()) {
	s := httptest.NewUnstartedServer(nil)
	s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if info, ok := as.Inspect(token); !ok || !info.Valid || !slices.Equal(info.Audience, []string{s.URL}) {
			http.Error(w, "not with this token", http.StatusUnauthorized)
			return
		}
		fmt.Fprintf(w, "12 %s", what)
	})
	s.Start()
	return s.URL, s.Close
}

// session makes one at the server that cfg describes, and keeps it going while f runs.
func session(t *testing.T, cfg flowtest.Config, f func(ctx context.Context, as *flowtest.Server, s *flow.Session)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		as := flowtest.New(cfg)
		defer as.Close()
		s, err := flow.New(flow.Config{
			Issuer: as.Issuer(), ClientID: "demo-client", Scope: []string{"offline_access"}, HTTP: as.RoundTripper(),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); s.Run(ctx) }()
		defer func() { cancel(); <-ended }()
		f(ctx, as, s)
		for _, v := range as.Stats().Violations {
			t.Errorf("the authorization server objects: %s", v)
		}
	})
}

func token(t *testing.T, from oauth2.TokenSource) *oauth2.Token {
	t.Helper()
	got, err := from.Token()
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestWithoutALoginTheErrorNamesPageAndCode(t *testing.T) {
	session(t, flowtest.Config{}, func(ctx context.Context, as *flowtest.Server, s *flow.Session) {
		began := time.Now()
		got, err := tokensource.New(ctx, s, 0).Token()
		var notReady *flow.NotReadyError
		if got != nil || !errors.As(err, &notReady) || notReady.Status.State != flow.StatePending || notReady.Status.Login == nil {
			t.Fatalf("%v, %v", got, err)
		}
		login := notReady.Status.Login
		if !strings.Contains(err.Error(), login.VerificationURI) || !strings.Contains(err.Error(), login.UserCode) {
			t.Errorf("nobody can log in by this: %v", err)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

func TestATokenSourceWaitsForAPerson(t *testing.T) {
	session(t, flowtest.Config{AccessTokenLifetime: time.Minute}, func(ctx context.Context, as *flowtest.Server, s *flow.Session) {
		from := tokensource.New(ctx, s, 10*time.Minute)
		go func() {
			time.Sleep(3 * time.Minute)
			if err := as.Approve(s.Status().Login.UserCode); err != nil {
				t.Error(err)
			}
		}()
		got := token(t, from)
		left := time.Until(got.Expiry)
		if !got.Valid() || got.Type() != "Bearer" || got.RefreshToken != "" || !as.ValidToken(got.AccessToken) || left < 55*time.Second || left > time.Minute {
			t.Errorf("type %s, %v left, refresh token: %v", got.Type(), left, got.RefreshToken != "")
		}
		got.AccessToken = "spoilt" // it is the caller's own
		if token(t, from).AccessToken == "spoilt" {
			t.Error("callers share one token")
		}
	})
}

func TestItsTokensAreRefreshedAhead(t *testing.T) {
	session(t, flowtest.Config{AutoApprove: true, AccessTokenLifetime: time.Minute}, func(ctx context.Context, as *flowtest.Server, s *flow.Session) {
		other, err := s.For(flow.Want{Audience: "https://billing.example"})
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for range 120 {
			var all sync.WaitGroup
			for _, from := range []flow.Source{s, other} {
				shared := tokensource.New(ctx, from, time.Minute)
				for range 10 {
					all.Go(func() {
						got, err := shared.Token()
						if err != nil {
							t.Error(err)
							return
						}
						info, _ := as.Inspect(got.AccessToken)
						if want := from == other; slices.Contains(info.Audience, "https://billing.example") != want || !info.Valid {
							t.Errorf("a token for %q, valid: %v", info.Audience, info.Valid)
						}
						if time.Until(got.Expiry) < 5*time.Second {
							t.Errorf("a token with %v left", time.Until(got.Expiry))
						}
					})
				}
				all.Wait()
				seen[token(t, shared).AccessToken] = true
			}
			time.Sleep(5 * time.Second)
		}
		if st := as.Stats(); st.Logins != 1 || st.Reuses != 0 || len(seen) < 2*10 || st.Refreshes > 2*600/40 {
			t.Errorf("%d tokens: %+v", len(seen), st)
		}
	})
}

func TestAnUnknownLifetimeIsTheZeroExpiry(t *testing.T) {
	session(t, flowtest.Config{AutoApprove: true}, func(ctx context.Context, as *flowtest.Server, s *flow.Session) {
		as.Script(flowtest.Poll, flowtest.Response{Pass: true, Edit: flowtest.EditJSON(func(m map[string]any) { delete(m, "expires_in") })})
		if got := token(t, tokensource.New(ctx, s, time.Minute)); !got.Expiry.IsZero() || !got.Valid() {
			t.Errorf("expiry %v", got.Expiry)
		}
	})
}

func TestItsContextEndsTheWaiting(t *testing.T) {
	session(t, flowtest.Config{}, func(ctx context.Context, as *flowtest.Server, s *flow.Session) {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		from := tokensource.New(ctx, s, time.Hour)
		began := time.Now()
		if got, err := from.Token(); got != nil || !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Minute {
			t.Errorf("%v, %v after %v", got, err, time.Since(began))
		}
		// Not even a token that is there: who gave the context wants an end.
		if got, err := from.Token(); got != nil || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, %v", got, err)
		}
	})
}

func TestNoStaleTokenAfterTheSessionHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		as := flowtest.New(flowtest.Config{AutoApprove: true, AccessTokenLifetime: time.Minute})
		defer as.Close()
		s, err := flow.New(flow.Config{Issuer: as.Issuer(), ClientID: "demo-client", HTTP: as.RoundTripper()})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); s.Run(ctx) }()
		from := tokensource.New(t.Context(), s, time.Minute)
		token(t, from)
		cancel()
		<-ended
		token(t, from) // it is good still
		time.Sleep(2 * time.Minute)
		if got, err := from.Token(); got != nil || !errors.Is(err, flow.ErrClosed) {
			t.Errorf("%v, %v", got, err)
		}
	})
}

// lastToken hands out one token whatever the time is.
type lastToken struct {
	flow.Source
	token *flow.Token
}

func (s lastToken) Await(context.Context, time.Duration) (*flow.Token, error) { return s.token, nil }

// A clock that is put forward says nothing about the session, which sees to that.
func TestTheSessionSaysWhetherATokenIsGood(t *testing.T) {
	session(t, flowtest.Config{AutoApprove: true, AccessTokenLifetime: time.Minute}, func(ctx context.Context, as *flowtest.Server, s *flow.Session) {
		got, err := s.Await(ctx, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if token(t, tokensource.New(ctx, lastToken{s, got}, 0)).AccessToken != got.Value().Reveal() {
			t.Error("another token")
		}
	})
}

// docs/library.md shows the example as it is compiled and run here.
func TestThePageShowsTheExample(t *testing.T) {
	page, err := os.ReadFile("../../docs/library.md")
	if err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?ms)^```go\n(.*?)^```$").FindAllSubmatch(page, -1)
	if len(blocks) < 2 {
		t.Fatalf("the page has %d pieces of Go", len(blocks))
	}
	for _, b := range blocks {
		if !strings.Contains(string(example), string(b[1])) {
			t.Errorf("this is not in example_test.go:\n%s", b[1])
		}
	}
}
