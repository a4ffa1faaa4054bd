//go:build !race

package ksock_test

import (
	"syscall"
	"testing"

	"github.com/sockd/sockd/families"
	"github.com/stretchr/testify/require"
)

// The race detector makes sync.Pool forget at random, so this is not for it.
func TestAttemptsAllocateNothing(t *testing.T) {
	ax, ay := tcpPair(t)
	bx, by := socketpair(t, syscall.SOCK_SEQPACKET)
	cx, cy := socketpair(t, syscall.SOCK_DGRAM)
	for name, pair := range map[string][2]families.Socket{"tcp": {ax, ay}, "seqpacket": {bx, by}, "unixgram": {cx, cy}} {
		t.Run(name, func(t *testing.T) {
			out, in := families.Msg{Data: []byte("hello")}, families.Msg{Data: make([]byte, 100)}
			room := in.Data
			require.Zero(t, testing.AllocsPerRun(1000, func() {
				if _, err := pair[0].Send(&out); err != nil {
					t.Fatal(err)
				}
				in.Data = room
				if err := families.RecvWait(t.Context(), pair[1], &in); err != nil {
					t.Fatal(err)
				}
				in.Data = room
				if err := pair[1].Recv(&in); err != families.ErrAgain {
					t.Fatal(err)
				}
			}))
		})
	}
}

func BenchmarkSendRecv(b *testing.B) {
	x, y := socketpair(b, syscall.SOCK_SEQPACKET)
	out, in := families.Msg{Data: []byte("hello")}, families.Msg{Data: make([]byte, 100)}
	room := in.Data
	b.ReportAllocs()
	for b.Loop() {
		if _, err := x.Send(&out); err != nil {
			b.Fatal(err)
		}
		in.Data = room
		if err := y.Recv(&in); err != nil {
			b.Fatal(err)
		}
	}
}
