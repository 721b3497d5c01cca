package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Load is a number of keep-alive connections, each with one request under way at a time. It is written by hand, since
// net/http would need more of the machine than the servers do that it is to measure.
type Load struct {
	address  string
	requests [][]byte
	conns    []*conn
}

type conn struct {
	net.Conn
	r    *bufio.Reader
	next int // of the requests
	took []time.Duration
}

// Dial opens the connections. Each request is a GET of /, with one of the lines of header if there are any: they take
// turns.
func Dial(address string, connections int, header ...string) (*Load, error) {
	l := &Load{address: address}
	for _, line := range header {
		l.requests = append(l.requests, request(address, line+"\r\n"))
	}
	if len(header) == 0 {
		l.requests = [][]byte{request(address, "")}
	}
	for i := range connections {
		c := &conn{next: i}
		if err := c.dial(address); err != nil {
			return nil, errors.Join(err, l.Close())
		}
		l.conns = append(l.conns, c)
	}
	return l, nil
}

func request(address, more string) []byte {
	return []byte("GET / HTTP/1.1\r\nHost: " + address + "\r\nUser-Agent: bench\r\n" + more + "\r\n")
}

func (c *conn) dial(address string) (err error) {
	if c.Conn, err = net.Dial("tcp", address); err == nil {
		c.r = bufio.NewReader(c.Conn)
	}
	return err
}

// Close closes all connections.
func (l *Load) Close() error {
	var errs []error
	for _, c := range l.conns {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// Run calls for so long, as fast as the answers come. Of the slice it fills in all but CPU and Others, and it returns
// the number of answers, too. A connection that breaks is a failed request and is opened again.
func (l *Load) Run(length time.Duration) (Slice, int, error) {
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		failed int
		errs   []error
		began  = time.Now()
	)
	for _, c := range l.conns {
		wg.Go(func() {
			bad, err := c.call(l, began.Add(length))
			mu.Lock()
			defer mu.Unlock()
			failed += bad
			errs = append(errs, err)
		})
	}
	wg.Wait()
	all := time.Since(began)
	var took []float64
	for _, c := range l.conns {
		for _, d := range c.took {
			took = append(took, Milliseconds(d))
		}
	}
	slices.Sort(took)
	if len(took) == 0 {
		return Slice{}, 0, errors.Join(append(errs, errors.New("no request was answered: use a longer slice"))...)
	}
	return Slice{
		Throughput: float64(len(took)) / all.Seconds(),
		P50:        Quantile(took, 0.5), P99: Quantile(took, 0.99), P999: Quantile(took, 0.999),
		Failed: failed, Length: all,
	}, len(took), errors.Join(errs...)
}

func (c *conn) call(l *Load, end time.Time) (failed int, err error) {
	c.took = c.took[:0]
	for now := time.Now(); now.Before(end); {
		status, err := c.once(l.requests[c.next%len(l.requests)])
		c.next += len(l.conns)
		if err != nil {
			failed++
			_ = c.Close() // it is broken already
			if err := c.dial(l.address); err != nil {
				return failed, err
			}
			now = time.Now()
			continue
		}
		if status != 200 {
			failed++
		}
		then := now
		now = time.Now()
		c.took = append(c.took, now.Sub(then))
	}
	return failed, nil
}

// All sends each of the requests once, unless ctx ends before, and returns how many were not answered with 200.
func (l *Load) All(ctx context.Context) (failed int, err error) {
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	for i, c := range l.conns {
		wg.Go(func() {
			bad := 0
			for at := i; at < len(l.requests); at += len(l.conns) {
				status, err := c.once(l.requests[at])
				if err = errors.Join(err, ctx.Err()); err != nil {
					mu.Lock()
					defer mu.Unlock()
					errs = append(errs, err)
					return
				}
				if status != 200 {
					bad++
				}
			}
			mu.Lock()
			defer mu.Unlock()
			failed += bad
		})
	}
	wg.Wait()
	return failed, errors.Join(errs...)
}

// once sends the request and reads the answer to its end.
func (c *conn) once(request []byte) (status int, err error) {
	if _, err := c.Write(request); err != nil {
		return 0, err
	}
	return readAnswer(c.r)
}

var contentLength = []byte("content-length:")

// readAnswer reads an answer that has a Content-Length, as those of the upstream here do.
func readAnswer(r *bufio.Reader) (status int, err error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if len(line) < len("HTTP/1.1 200\r\n") || !bytes.HasPrefix(line, []byte("HTTP/1.1 ")) {
		return 0, fmt.Errorf("not an answer: %q", line)
	}
	if status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, fmt.Errorf("not an answer: %q", line)
	}
	length := -1
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		if line = bytes.TrimSpace(line); len(line) == 0 {
			break
		}
		if len(line) > len(contentLength) && bytes.EqualFold(line[:len(contentLength)], contentLength) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(line[len(contentLength):]))); err != nil {
				return 0, fmt.Errorf("not a length: %q", line)
			}
		}
	}
	if length < 0 {
		return 0, errors.New("an answer without Content-Length: let the upstream send one")
	}
	_, err = r.Discard(length)
	return status, err
}

// Once makes one call on a connection of its own, for waiting until a server serves.
func Once(address string, header ...string) error {
	l, err := Dial(address, 1, header...)
	if err != nil {
		return err
	}
	defer l.Close()
	c := l.conns[0]
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	status, err := c.once(l.requests[0])
	if err == nil && status != 200 {
		err = fmt.Errorf("status %d", status)
	}
	return err
}
