package lab

import (
	"bufio"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestAnswersAreRead(t *testing.T) {
	for _, test := range []struct {
		name, answer string
		status       int
		bad          bool
	}{
		{name: "plain", answer: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", status: 200},
		{name: "in small letters", answer: "HTTP/1.1 503 No\r\nx: y\r\ncontent-length:0\r\n\r\n", status: 503},
		{name: "without a reason", answer: "HTTP/1.1 401 \r\nContent-Length: 0\r\n\r\n", status: 401},
		{name: "chunked", answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", bad: true},
		{name: "cut off", answer: "HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nhi", bad: true},
		{name: "no number", answer: "HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nhi", bad: true},
		{name: "something else", answer: "220 mail.example.com ESMTP\r\n\r\n", bad: true},
		{name: "nothing", bad: true},
	} {
		status, err := readAnswer(bufio.NewReader(strings.NewReader(test.answer)))
		if (err != nil) != test.bad || err == nil && status != test.status {
			t.Errorf("%s: %d, %v", test.name, status, err)
		}
	}
}

// Two answers in a row: the second must not begin in the body of the first.
func TestAnswersAreReadToTheirEnd(t *testing.T) {
	r := bufio.NewReader(strings.NewReader("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nHTTPHTTP/1.1 201 OK\r\nContent-Length: 0\r\n\r\n"))
	for _, want := range []int{200, 201} {
		if status, err := readAnswer(r); status != want || err != nil {
			t.Errorf("%d, %v", status, err)
		}
	}
}

func TestLoadKeepsItsConnectionsAndCountsEachAnswer(t *testing.T) {
	var (
		answered, token atomic.Int64
		peers           sync.Map
	)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answered.Add(1)
		peers.Store(r.RemoteAddr, true)
		if r.Header.Get("X-Device-Id") == "7" {
			token.Add(1)
		}
		_, _ = w.Write([]byte("hello"))
	}))
	defer s.Close()
	l, err := Dial(s.Listener.Addr().String(), 8, "X-Device-Id: 7")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 2 {
		answered.Store(0)
		token.Store(0)
		slice, answers, err := l.Run(50 * time.Millisecond)
		if err != nil || slice.Failed != 0 || answers == 0 || int64(answers) != answered.Load() || token.Load() != answered.Load() {
			t.Errorf("%d answers of %d, %d with the header, %+v, %v", answers, answered.Load(), token.Load(), slice, err)
		}
		if want := float64(answers) / slice.Length.Seconds(); slice.Throughput != want || slice.Length < 50*time.Millisecond {
			t.Errorf("%v requests/s in %v, want %v", slice.Throughput, slice.Length, want)
		}
		if slice.P50 <= 0 || slice.P50 > slice.P99 || slice.P99 > slice.P999 {
			t.Errorf("%+v", slice)
		}
	}
	n := 0
	peers.Range(func(any, any) bool { n++; return true })
	if n != 8 {
		t.Errorf("%d connections for 8", n)
	}
}

func TestFailuresAreCounted(t *testing.T) {
	var calls atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		switch calls.Add(1) {
		case 1:
			panic(http.ErrAbortHandler) // the connection breaks
		case 2:
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer s.Close()
	l, err := Dial(s.Listener.Addr().String(), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	slice, answers, err := l.Run(50 * time.Millisecond)
	if err != nil || slice.Failed != 2 || int64(answers) != calls.Load()-1 {
		t.Errorf("%d failed, %d answers of %d calls, %v", slice.Failed, answers, calls.Load(), err)
	}
}

func TestEachRequestHasItsTurn(t *testing.T) {
	var seen sync.Map
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := seen.LoadOrStore(r.Header.Get("X-Device-Id"), new(atomic.Int64))
		n.(*atomic.Int64).Add(1)
		if r.Header.Get("X-Device-Id") == "3" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer s.Close()
	var header []string
	for i := range 10 {
		header = append(header, fmt.Sprint("X-Device-Id: ", i))
	}
	l, err := Dial(s.Listener.Addr().String(), 4, header...)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if failed, err := l.All(t.Context()); failed != 1 || err != nil {
		t.Errorf("%d failed, %v", failed, err)
	}
	n := 0
	seen.Range(func(key, count any) bool {
		if n++; count.(*atomic.Int64).Load() != 1 {
			t.Errorf("device %s was sent %d times", key, count.(*atomic.Int64).Load())
		}
		return true
	})
	if n != 10 {
		t.Errorf("%d devices of 10", n)
	}
	slice, answers, err := l.Run(50 * time.Millisecond)
	if err != nil || answers < 40 || slice.Failed == 0 {
		t.Fatalf("%d answers, %+v, %v", answers, slice, err)
	}
	seen.Range(func(key, count any) bool {
		if count.(*atomic.Int64).Load() < 2 {
			t.Errorf("device %s had no further turn", key)
		}
		return true
	})
}
