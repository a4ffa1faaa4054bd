package model

import (
	"errors"
	"net/netip"
	"os/user"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/families"
)

func TestParseAllow(t *testing.T) {
	for _, row := range []struct{ text, prints string }{
		{"10.0.0.0/8", "10.0.0.0/8"}, {"0.0.0.0/0", "0.0.0.0/0"}, {"2001:db8::/32", "2001:db8::/32"}, {"::/0", "::/0"},
		{"127.0.0.1", "127.0.0.1"}, {"127.0.0.1/32", "127.0.0.1"}, {"::1", "::1"}, {"::1/128", "::1"}, {"2001:DB8:0::1", "2001:db8::1"},
		{"::ffff:10.0.0.1", "10.0.0.1"}, {"::ffff:10.0.0.0/104", "10.0.0.0/8"}, {"::ffff:0.0.0.0/96", "0.0.0.0/0"},
		{"uid:0", "uid:0"}, {"uid:1000", "uid:1000"}, {"gid:007", "gid:7"}, {"uid:4294967294", "uid:4294967294"},
		{"uid:root", "uid:0"}, {"gid:root", "gid:0"},
	} {
		a, err := ParseAllow(row.text)
		require.NoError(t, err, row.text)
		require.Equal(t, row.prints, a.String(), row.text)
	}
}

func TestParseAllowRefuses(t *testing.T) {
	for text, why := range map[string]string{
		"":                   "want a network",
		"nonsense":           "want a network",
		"localhost":          "want a network",
		"10.0.0.1/8":         "10.0.0.0/8 for the network, or 10.0.0.1 alone",
		"2001:db8::1/32":     "2001:db8::/32 for the network",
		"::ffff:10.0.0.0/90": "bits below its length",
		"10.0.0.0/33":        "want a network",
		"10.0.0.0/":          "want a network",
		"10.0.0/8":           "want a network",
		"010.0.0.1":          "want a network",
		"fe80::1%lo":         "zone",
		"fe80::%lo/10":       "zone",
		"127.0.0.1:80":       "want a network",
		" 127.0.0.1":         "want a network",
		"uid:":               "there is no user",
		"uid:-1":             "there is no user",
		"uid:4294967295":     "nobody has the number",
		"uid:4294967296":     "there is no user",
		"uid:no such user":   `there is no user "no such user"`,
		"gid:nosuchgroup":    "there is no group",
		"UID:0":              "want a network",
		"pid:1":              "want a network",
	} {
		a, err := ParseAllow(text)
		require.ErrorIs(t, err, families.ErrSyntax, text)
		require.ErrorContains(t, err, why, text)
		require.Zero(t, a, text)
	}
}

func TestFormatAllowHasSpacesBetween(t *testing.T) {
	require.Equal(t, "10.0.0.0/8 ::1 uid:5 gid:6", FormatAllow([]Allow{
		{Prefix: netip.MustParsePrefix("10.0.0.0/8")}, {Prefix: netip.MustParsePrefix("::1/128")}, {Kind: AllowUser, ID: 5}, {Kind: AllowGroup, ID: 6},
	}))
	require.Empty(t, FormatAllow(nil))
}

// What parses prints back the same, and holds whom it names.
func FuzzParseAllow(f *testing.F) {
	for _, seed := range []string{"10.0.0.0/8", "::1", "::ffff:1.2.3.4", "::ffff:0:0/96", "1.2.3.4/31", "uid:0", "gid:root", "uid:x", "fe80::1%eth0", "0.0.0.0/0", "::/0", "10.0.0.1/8", ":", "uid:00", "gid:4294967295"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		a, err := ParseAllow(text)
		if err != nil {
			require.Zero(t, a)
			var syntax *families.SyntaxError
			require.True(t, errors.As(err, &syntax), "%v", err)
			return
		}
		again, err := ParseAllow(a.String())
		require.NoError(t, err, a.String())
		require.Equal(t, a, again)
		if a.Kind == AllowPrefix {
			require.Equal(t, a.Prefix.Masked(), a.Prefix)
			require.False(t, a.Prefix.Addr().Is4In6(), "an IPv4 peer would not match %s", a)
			require.True(t, a.Prefix.Contains(a.Prefix.Addr()))
		}
	})
}

func TestANameIsItsNumber(t *testing.T) {
	u, err := user.Current()
	require.NoError(t, err)
	a, err := ParseAllow("uid:" + u.Username)
	require.NoError(t, err)
	require.Equal(t, "uid:"+u.Uid, a.String())
}
