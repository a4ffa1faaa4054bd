package ksock

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMissingCapabilitiesComeFromCapEff(t *testing.T) {
	for status, want := range map[string][]string{
		"Name:\tx\nCapEff:\t000001ffffffffff\n":    nil,
		"CapPrm:\tff\nCapEff:\t0000000000002400\n": {"CAP_NET_ADMIN"},
		"CapEff:\t0000000000000000\n":              {"CAP_NET_RAW", "CAP_NET_BIND_SERVICE", "CAP_NET_ADMIN"},
	} {
		got, err := missing(status)
		require.NoError(t, err)
		var names []string
		for _, c := range got {
			names = append(names, c.Name)
		}
		require.Equal(t, want, names)
	}
	for _, bad := range []string{"", "CapEff:\tnonsense\n"} {
		_, err := missing(bad)
		require.Error(t, err)
	}
}
