package flowtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"time"
)

// Start listens on a free port of 127.0.0.1 and returns the server's URL, which becomes the issuer if none is set.
func (s *Server) Start() (string, error) { return s.listen("127.0.0.1:0", s, false, true) }

// StartTLS is Start with TLS. The certificate is self-signed; Client trusts it.
func (s *Server) StartTLS() (string, error) { return s.listen("127.0.0.1:0", s, true, true) }

// Listen is Start on an address of one's own choice. A host name in the address stands in the URL too.
func (s *Server) Listen(addr string) (string, error) { return s.listen(addr, s, false, true) }

// StartAPI listens on a free port of 127.0.0.1 with [Server.API] and returns its URL. Close ends it too.
func (s *Server) StartAPI() (string, error) { return s.listen("127.0.0.1:0", s.API(), false, false) }

// ListenAPI is StartAPI on an address of one's own choice.
func (s *Server) ListenAPI(addr string) (string, error) { return s.listen(addr, s.API(), false, false) }

// Client returns an HTTP client that trusts the certificate of StartTLS. Close its idle connections when done.
func (s *Server) Client() *http.Client {
	pool := x509.NewCertPool()
	if cert := s.Certificate(); cert != nil {
		pool.AddCert(cert)
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}
}

// Certificate returns the certificate of StartTLS, nil before.
func (s *Server) Certificate() *x509.Certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cert
}

func (s *Server) listen(addr string, handler http.Handler, secure, issues bool) (string, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return "", fmt.Errorf("flowtest: listening: %w", err)
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return "", fmt.Errorf("flowtest: listening: %w", err)
	}
	scheme := "http"
	var cert *x509.Certificate
	if secure {
		scheme = "https"
		pair, err := selfSigned()
		if err != nil {
			return "", errors.Join(fmt.Errorf("flowtest: making a certificate: %w", err), ln.Close())
		}
		cert = pair.Leaf
		ln = tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12})
	}
	authority := ln.Addr().String()
	_, port, err := net.SplitHostPort(authority)
	if err != nil {
		return "", errors.Join(fmt.Errorf("flowtest: listening: %w", err), ln.Close())
	}
	if host == "" {
		host = "localhost"
	}
	if net.ParseIP(host) == nil {
		authority = net.JoinHostPort(host, port)
	}
	srv := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 30 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0), // broken handshakes and the like are what tests do
		ConnState:         s.trackConn,
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return "", errors.Join(errors.New("flowtest: the server is closed"), ln.Close())
	}
	u := scheme + "://" + authority
	if issues && s.listenURL == "" {
		s.listenURL = u
	}
	if cert != nil {
		s.cert = cert
	}
	s.servers = append(s.servers, srv)
	s.work.Go(func() {
		_ = srv.Serve(ln) // ends with http.ErrServerClosed
	})
	return u, nil
}

// trackConn lets Close wait for the goroutines of connections, which http.Server.Close does not.
func (s *Server) trackConn(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.work.Add(1) // Serve's goroutine holds a count, so Wait cannot have returned
		select {
		case <-s.life.Done():
			_ = c.Close() // accepted while the server was closing, which may have missed it
		default:
		}
	case http.StateClosed, http.StateHijacked:
		s.work.Done()
	}
}

func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: "flowtest"},
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, IsCA: true,
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}
