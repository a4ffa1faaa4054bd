package wire_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/packet/inject/wire"
	"github.com/stretchr/testify/require"
)

func TestRecordsComeBackAsTheyWere(t *testing.T) {
	want := []wire.Record{
		{At: 0, Frame: []byte{}},
		{At: time.Hour, Frame: []byte("frame")},
		{At: 1<<63 - 1, Frame: bytes.Repeat([]byte{7}, wire.MaxFrame)},
	}
	var b []byte
	for _, r := range want {
		b = wire.Append(b, r)
	}
	n, records, err := wire.Whole(b)
	require.NoError(t, err)
	require.Equal(t, len(b), n)
	require.Equal(t, len(want), records)
	for _, w := range want {
		got, size, err := wire.Next(b)
		require.NoError(t, err)
		require.Equal(t, w, got)
		b = b[size:]
	}
	require.Empty(t, b)
}

func TestWhatCannotBeInARecordIsMadeToFit(t *testing.T) {
	r, _, err := wire.Next(wire.Append(nil, wire.Record{At: -time.Second, Frame: make([]byte, wire.MaxFrame+1)}))
	require.NoError(t, err)
	require.Zero(t, r.At, "before the first frame is with it")
	require.Len(t, r.Frame, wire.MaxFrame)
}

func TestARecordThatIsNotAllThereIsWaitedFor(t *testing.T) {
	whole := wire.Append(nil, wire.Record{At: 5, Frame: []byte("frame")})
	for n := range whole {
		_, size, err := wire.Next(whole[:n])
		require.NoError(t, err)
		require.Zero(t, size, "%d bytes", n)
	}
}

func TestWhatIsNoRecordIsRefused(t *testing.T) {
	for name, b := range map[string][]byte{
		"longer than any frame": {0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0},
		"before the first one":  {1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80, 1},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := wire.Next(b)
			require.ErrorIs(t, err, families.ErrSyntax)
			n, _, err := wire.Whole(append(wire.Append(nil, wire.Record{Frame: []byte("good")}), b...))
			require.ErrorIs(t, err, families.ErrSyntax)
			require.Equal(t, wire.HeaderLen+4, n, "the good one before it")
		})
	}
}

// What is read prints back the same, takes no more than is there, and an error
// leaves nothing.
func FuzzNext(f *testing.F) {
	f.Add(wire.Append(nil, wire.Record{At: 5, Frame: []byte("frame")}))
	f.Add(wire.Append(wire.Append(nil, wire.Record{}), wire.Record{At: time.Second, Frame: []byte{1}}))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var again []byte
		rest := b
		for {
			r, size, err := wire.Next(rest)
			if err != nil || size == 0 {
				require.Zero(t, r)
				require.Zero(t, size)
				break
			}
			require.LessOrEqual(t, size, len(rest))
			again = wire.Append(again, r)
			rest = rest[size:]
		}
		require.Equal(t, string(b[:len(again)]), string(again))
		n, _, _ := wire.Whole(b)
		require.Len(t, again, n)
	})
}
