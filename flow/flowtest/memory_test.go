package flowtest_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/deviceflow/caddy-deviceflow/flow/flowtest"
)

func TestInMemoryCancellationEndsTheWait(t *testing.T) {
	bubble(t, flowtest.Config{}, func(c *client) {
		c.as.Script(flowtest.Device, flowtest.Response{Hang: true})
		ctx, cancel := context.WithTimeout(c.t.Context(), 7*time.Second)
		defer cancel()
		began := time.Now()
		_, err := c.do(c.request(http.MethodPost, c.device, c.form()).WithContext(ctx))
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 7*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		ctx, cancel = context.WithCancel(c.t.Context())
		cancel()
		if _, err := c.do(c.request(http.MethodPost, c.device, c.form()).WithContext(ctx)); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if n := c.as.Count(flowtest.Device); n != 1 {
			t.Errorf("%d requests; one was cancelled before it was sent", n)
		}
		synctest.Wait()
		if r := c.as.Requests()[0]; r.Status != 0 {
			t.Errorf("a request without an answer has status %d", r.Status)
		}
	})
}

func TestInMemoryClientTimeout(t *testing.T) {
	bubble(t, flowtest.Config{}, func(c *client) {
		c.hc.Timeout = 10 * time.Second
		c.as.Script(flowtest.Device, flowtest.Response{Func: func(w http.ResponseWriter, r *http.Request) {
			for { // a byte a second
				if _, err := io.WriteString(w, " "); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}})
		began := time.Now()
		_, err := c.do(c.request(http.MethodPost, c.device, c.form()))
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() || time.Since(began) != 10*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

func TestInMemoryBodyIsStreamedAndBounded(t *testing.T) {
	bubble(t, flowtest.Config{}, func(c *client) {
		ended := false
		c.as.Script(flowtest.Device, flowtest.Response{Func: func(w http.ResponseWriter, _ *http.Request) {
			chunk := make([]byte, 1<<20)
			for { // without end
				if _, err := w.Write(chunk); err != nil {
					ended = true
					return
				}
			}
		}})
		resp, err := c.hc.Do(c.request(http.MethodPost, c.device, c.form()))
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.CopyN(io.Discard, resp.Body, 5<<20); n != 5<<20 || err != nil {
			t.Errorf("read %d: %v", n, err)
		}
		resp.Body.Close()
		synctest.Wait()
		if !ended {
			t.Error("the handler still writes to a client that left")
		}
		if _, err := resp.Body.Read(make([]byte, 1)); err == nil {
			t.Error("a closed body can be read")
		}
	})
}

func TestInMemoryHostsAndClosing(t *testing.T) {
	bubble(t, flowtest.Config{}, func(c *client) {
		var dns *net.DNSError
		if _, err := c.hc.Get("https://evil.example/token"); !errors.As(err, &dns) || !dns.IsNotFound {
			t.Errorf("another host: %v", err)
		}
		c.as.ScriptAlways(flowtest.Device, flowtest.Response{Hang: true})
		errs := make(chan error)
		go func() {
			_, err := c.do(c.request(http.MethodPost, c.device, c.form()))
			errs <- err
		}()
		synctest.Wait()
		c.as.Close()
		if err := <-errs; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("hanging while the server closed: %v", err)
		}
		if _, err := c.do(c.request(http.MethodPost, c.device, c.form())); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("after Close: %v", err)
		}
		if _, err := c.as.Start(); err == nil {
			t.Error("a closed server listens")
		}
	})
}

func TestInMemoryFunctionsLearnThatNobodyWaits(t *testing.T) {
	for name, leave := range map[string]func(*client, *http.Response){
		"body closed":   func(_ *client, resp *http.Response) { resp.Body.Close() },
		"server closed": func(c *client, _ *http.Response) { c.as.Close() },
	} {
		bubble(t, flowtest.Config{}, func(c *client) {
			ended := false
			c.as.Script(flowtest.Device, flowtest.Response{Func: func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(http.StatusOK)
				<-r.Context().Done()
				ended = true
			}})
			resp, err := c.hc.Do(c.request(http.MethodPost, c.device, c.form()))
			if err != nil {
				t.Fatal(name, err)
			}
			leave(c, resp)
			synctest.Wait()
			if !ended {
				t.Errorf("%s: the function waits on", name)
			}
			resp.Body.Close()
		})
	}
}

func TestInMemoryHEADHasNoBody(t *testing.T) {
	bubble(t, flowtest.Config{}, func(c *client) {
		ended := false
		c.as.Script(flowtest.Discovery, flowtest.Response{Func: func(w http.ResponseWriter, _ *http.Request) {
			for range 100 {
				_, _ = io.WriteString(w, "more than is kept")
			}
			ended = true
		}})
		if a, err := c.do(c.request(http.MethodHead, "/.well-known/openid-configuration", "")); err != nil || a.status != 200 || a.raw != "" {
			t.Errorf("HEAD: %d %q %v", a.status, a.raw, err)
		}
		synctest.Wait()
		if !ended {
			t.Error("the function still writes")
		}
	})
}

func TestInMemoryAnswerCutShortIsNoAnswer(t *testing.T) {
	bubble(t, flowtest.Config{}, func(c *client) {
		c.as.Script(flowtest.Device, flowtest.Response{Func: func(w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := io.WriteString(w, "x"); err != nil {
					return
				}
			}
		}})
		resp, err := c.hc.Do(c.request(http.MethodPost, c.device, c.form()))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		synctest.Wait()
		c.as.Close()
		if raw, err := io.ReadAll(resp.Body); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("read %d bytes: %v", len(raw), err)
		}
	})
}

func TestInMemoryServerSeesAProperRequest(t *testing.T) {
	bubble(t, flowtest.Config{}, func(c *client) {
		closed := make(chan struct{})
		c.as.Script(flowtest.UserInfo, flowtest.Response{Func: func(w http.ResponseWriter, r *http.Request) {
			if r.Host != "as.flowtest.example" || r.URL.Host != "" || r.RequestURI != "/userinfo" || r.TLS == nil || r.RemoteAddr == "" {
				t.Errorf("host %q, URL %v, URI %q, TLS %v", r.Host, r.URL, r.RequestURI, r.TLS)
			}
			w.WriteHeader(http.StatusNoContent)
		}})
		req := c.request(http.MethodPost, "/userinfo", "")
		req.Body = closeNoter{strings.NewReader("unread"), closed}
		a, err := c.do(req)
		if err != nil || a.status != 204 || a.raw != "" {
			t.Errorf("%d %q %v", a.status, a.raw, err)
		}
		<-closed // or the bubble is dead-locked
	})
}

type closeNoter struct {
	io.Reader
	closed chan struct{}
}

func (c closeNoter) Close() error {
	select {
	case <-c.closed:
	default:
		close(c.closed)
	}
	return nil
}
