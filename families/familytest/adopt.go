package familytest

import (
	"os"
	"testing"

	"github.com/sockd/sockd/families"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// testAdopt takes duplicates in, as from another process.
func (s suite) testAdopt(t *testing.T) {
	adopter := s.f.(families.Adopter)
	a, b := s.pair(t)
	twin, err := adopter.Adopt(Dup(t, b))
	require.NoError(t, err)
	closed(t, twin)
	want, got := b.Info(), twin.Info()
	if s.c.Spec.Type == families.Raw || s.c.PeerUnknown {
		// Of a raw socket the kernel tells no peer: only who connected it knows.
		want.Peer, want.State = nil, families.Bound
	}
	require.Equal(t, want, got)
	mustSend(t, a, "for either")
	require.Equal(t, "for either", s.mustRecv(t, twin))
	require.NoError(t, twin.Close())
	mustSend(t, a, "for one")
	require.Equal(t, "for one", s.mustRecv(t, b))

	f, err := os.Open("/dev/null")
	require.NoError(t, err)
	defer f.Close()
	rc, err := f.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, rc.Control(func(fd uintptr) {
		_, err := adopter.Adopt(int(fd))
		require.Error(t, err, "a file is no socket")
		_, err = unix.FcntlInt(fd, unix.F_GETFD, 0)
		require.NoError(t, err, "the caller still owns what was not adopted")
	}))
}

// Dup is a duplicate of s's descriptor, which the caller owns.
func Dup(tb testing.TB, s families.Socket) int {
	tb.Helper()
	var dup int
	require.NoError(tb, mustAs[families.Descriptor](tb, s).Control(func(fd int) (err error) {
		dup, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		return err
	}))
	return dup
}
