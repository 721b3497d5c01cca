package caddymodule

import (
	"errors"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
)

// checkHost refuses names that the operator has not given: a web page can make any
// name of its own point here, and would then be of the same origin.
func (g *keeper) checkHost(r *http.Request) *refusal {
	if r.Host == "" { // HTTP/1.0; no browser leaves it out
		return nil
	}
	host, _, ok := splitHostPort(r.Host)
	if ok && g.allowsHost(host, r) {
		return nil
	}
	name := clean(r.Host, maxCode)
	if ok && !isAddress(host) {
		return forbidden("host-not-allowed", "This name is not one of the proxy's",
			"The request names the host %q, which is none of this proxy's names. If it should be, add it to the setting allow_host.", clean(host, maxCode))
	}
	return forbidden("host-not-allowed", "This host is not one of the proxy's",
		"The request names the host %q, which is never allowed. Use localhost, a real address, or a name that the setting allow_host has.", name)
}

// allowsHost reports whether a host without its port may be asked for here.
func (g *keeper) allowsHost(host string, r *http.Request) bool {
	if isAddress(host) {
		return isUsableAddress(host)
	}
	host = strings.TrimSuffix(host, ".")
	dots, label := 0, 0
	for i := range len(host) {
		switch c := host[i]; {
		case c == '.':
			if label == 0 {
				return false
			}
			dots, label = dots+1, 0
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
			label++
		default:
			return false
		}
	}
	if label == 0 {
		return false
	}
	if dots == 0 { // localhost, a neighbour in the same compose file
		return true
	}
	host = strings.ToLower(host)
	return strings.HasSuffix(host, ".localhost") || g.hosts.has(host) || g.siteHosts(r).has(host)
}

// splitHostPort takes Host apart without an allocation. The port may be empty.
func splitHostPort(s string) (host, port string, ok bool) {
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return "", "", false
		}
		host, port = s[1:end], s[end+1:]
		if !strings.Contains(host, ":") || port != "" && port[0] != ':' {
			return "", "", false
		}
		port = strings.TrimPrefix(port, ":")
	} else if i := strings.IndexByte(s, ':'); i < 0 || strings.Contains(s[i+1:], ":") {
		host = s // or an IPv6 address that lacks its brackets
	} else {
		host, port = s[:i], s[i+1:]
	}
	for i := range len(port) {
		if port[i] < '0' || port[i] > '9' {
			return "", "", false
		}
	}
	return host, port, host != "" && len(port) <= 5
}

// isAddress reports whether a host would be read as an IP address and not be
// looked up: it has a colon, or its last label is a number, also in the spellings
// of inet_aton that browsers know (0x7f.1).
func isAddress(host string) bool {
	host = strings.TrimSuffix(host, ".")
	if strings.Contains(host, ":") {
		return true
	}
	last := host[strings.LastIndexByte(host, '.')+1:]
	if last == "" || last[0] < '0' || last[0] > '9' {
		return false
	}
	if len(last) >= 2 && last[0] == '0' && last[1]|0x20 == 'x' {
		return strings.Trim(last[2:], "0123456789abcdefABCDEF") == ""
	}
	return strings.Trim(last, "0123456789") == ""
}

// isUsableAddress refuses addresses that lead to this machine without a browser
// taking them for loopback, so that it does not say where a request comes from:
// 0.0.0.0, [::], and loopback as an IPv4-mapped address.
func isUsableAddress(host string) bool {
	host = strings.TrimSuffix(host, ".")
	if addr, err := netip.ParseAddr(host); err == nil {
		plain := addr.Unmap().WithZone("")
		return !plain.IsUnspecified() && (plain == addr.WithZone("") || !plain.IsLoopback())
	}
	return isOldAddress(host)
}

// isOldAddress reports whether host is an IPv4 address other than 0.0.0.0 in a
// spelling of inet_aton: one to four numbers, decimal, octal or hexadecimal, the
// last of which fills what is left.
func isOldAddress(host string) bool {
	parts := strings.Split(host, ".")
	if len(parts) > 4 {
		return false
	}
	zero := true
	for i, part := range parts {
		bits := 8
		if i == len(parts)-1 {
			bits = 8 * (5 - len(parts))
		}
		base := 10
		switch {
		case strings.HasPrefix(part, "0x"), strings.HasPrefix(part, "0X"):
			base, part = 16, "0"+part[2:]
		case strings.HasPrefix(part, "0"):
			base = 8
		}
		n, err := strconv.ParseUint(part, base, bits)
		if err != nil {
			return false
		}
		zero = zero && n == 0
	}
	return !zero
}

// hostSet is names in lower case, and patterns of which some labels are `*`.
type hostSet struct {
	exact map[string]struct{}
	wild  []string
}

// add takes a name or a pattern in lower case.
func (s *hostSet) add(name string) error {
	name = strings.TrimSuffix(name, ".")
	switch {
	case strings.Trim(name, "*.") == "":
		return errors.New("this would let any web page in by DNS rebinding: name the hosts")
	case strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-_.*") != "" || isAddress(name):
		return errors.New("write a host name without scheme, port and path, in its ASCII form; addresses need no setting")
	case strings.Contains(name, "*"):
		s.wild = append(s.wild, name)
	default:
		if s.exact == nil {
			s.exact = make(map[string]struct{})
		}
		s.exact[name] = struct{}{}
	}
	return nil
}

func (s *hostSet) has(host string) bool {
	if _, ok := s.exact[host]; ok {
		return true
	}
	for _, pattern := range s.wild {
		if matchLabels(pattern, host) {
			return true
		}
	}
	return false
}

// matchLabels compares label by label, as Caddy's host matcher does.
func matchLabels(pattern, host string) bool {
	for {
		p, patternRest, morePattern := strings.Cut(pattern, ".")
		h, hostRest, moreHost := strings.Cut(host, ".")
		if p != "*" && p != h || morePattern != moreHost {
			return false
		}
		if !morePattern {
			return true
		}
		pattern, host = patternRest, hostRest
	}
}
