package ksock

import (
	"testing"

	"github.com/sockd/sockd/families"
	"github.com/stretchr/testify/require"
)

// A literal of the other family was "no address and no host name", which is what
// it is least of all; and where only the host is given the text had no word at all.
func TestALiteralThatDoesNotFitIsSaidToBeOne(t *testing.T) {
	for _, tt := range []struct{ network, text, why string }{
		{"ip6", "127.0.0.1:0", `"127.0.0.1" is an IPv4 address, and inet is its family`},
		{"ip6", "[127.0.0.1]:0", `"[127.0.0.1]" is an IPv4 address, and inet is its family`},
		{"ip4", "[::1]:80", `"[::1]" is an IPv6 address, and inet6 is its family`},
		{"ip4", "fe80::1%lo:80", `"fe80::1%lo" is an IPv6 address, and inet6 is its family`},
		{"ip6", "::1:80", `"::1" wants brackets: [::1]`},
		{"ip4", "a b:80", `"a b" is no address and no host name`},
	} {
		_, err := LookupHostPort(t.Context(), tt.network, "tcp", tt.text)
		requireWhy(t, err, tt.why, tt.text)
	}
	for _, tt := range []struct{ network, text, why string }{
		{"ip4", "127.0.0.1:80", `"127.0.0.1:80" has a port, and a raw socket has none`},
		{"ip6", "[::1]:80", `"[::1]:80" has a port, and a raw socket has none`},
		{"ip6", "127.0.0.1", `"127.0.0.1" is an IPv4 address, and inet is its family`},
		{"ip4", "::1", `"::1" is an IPv6 address, and inet6 is its family`},
		{"ip4", "7", `"7" is no address and no host name`},
	} {
		_, err := LookupHost(t.Context(), tt.network, tt.text)
		requireWhy(t, err, tt.why, tt.text)
	}
}

func requireWhy(t *testing.T, err error, why, text string) {
	t.Helper()
	var s *families.SyntaxError
	require.ErrorAs(t, err, &s, text)
	require.Equal(t, why, s.Why)
}
