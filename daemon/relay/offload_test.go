package relay

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
)

// vnet writes a virtio_net_hdr.
func vnet(flags, gso byte, size, start, offset int) []byte {
	h := make([]byte, vnetLen)
	h[0], h[1] = flags, gso
	binary.NativeEndian.PutUint16(h[4:], uint16(size))
	binary.NativeEndian.PutUint16(h[6:], uint16(start))
	binary.NativeEndian.PutUint16(h[8:], uint16(offset))
	return h
}

// packetOf makes an Ethernet frame with IPv4 or IPv6 and a TCP or UDP header,
// whose checksum field holds the pseudo-header's sum, as with CHECKSUM_PARTIAL.
func packetOf(v6, vlan bool, protocol byte, flags byte, payload []byte) (f []byte, l3, l4 int) {
	f = append(f, "\x02\x00\x00\x00\x00\x01\x02\x00\x00\x00\x00\x02"...)
	if vlan {
		f = append(f, 0x81, 0x00, 0x00, 0x05)
	}
	header := 8
	if protocol == 6 {
		header = 20
	}
	if v6 {
		f = append(f, 0x86, 0xdd)
		l3 = len(f)
		f = append(f, 0x60, 0, 0, 0, 0, 0, protocol, 64)
		binary.BigEndian.PutUint16(f[l3+4:], uint16(header+len(payload)))
		for i := range 32 {
			f = append(f, byte(i*7))
		}
	} else {
		f = append(f, 0x08, 0x00)
		l3 = len(f)
		f = append(f, 0x45, 0, 0, 0, 0x12, 0x34, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2)
		binary.BigEndian.PutUint16(f[l3+2:], uint16(20+header+len(payload)))
	}
	l4 = len(f)
	if protocol == 6 {
		f = append(f, 0x1f, 0x90, 0x00, 0x50, 0, 0, 0x10, 0, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0)
	} else {
		f = append(f, 0x1f, 0x90, 0x00, 0x50, 0, 0, 0, 0)
		binary.BigEndian.PutUint16(f[l4+4:], uint16(8+len(payload)))
	}
	f = append(f, payload...)
	at := l4 + 16
	if protocol == 17 {
		at = l4 + 6
	}
	binary.BigEndian.PutUint16(f[at:], referenceSum(pseudoHeader(f, l3, v6, protocol, len(f)-l4)))
	return f, l3, l4
}

func pseudoHeader(f []byte, l3 int, v6 bool, protocol byte, n int) []byte {
	b := bytes.Clone(f[l3+12 : l3+20])
	if v6 {
		b = bytes.Clone(f[l3+8 : l3+40])
	}
	return append(b, 0, protocol, byte(n>>8), byte(n))
}

// referenceSum is RFC 1071 word by word, not the code under test.
func referenceSum(b []byte) uint16 {
	var s uint64
	for i, c := range b {
		if i%2 == 0 {
			s += uint64(c) << 8
		} else {
			s += uint64(c)
		}
	}
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// requireChecksums: over pseudo-header and segment, and over an IPv4 header, the
// sum is all ones.
func requireChecksums(tb testing.TB, f []byte, l3, l4 int, v6 bool, protocol byte) {
	tb.Helper()
	sum := referenceSum(append(pseudoHeader(f, l3, v6, protocol, len(f)-l4), f[l4:]...))
	require.EqualValues(tb, 0xffff, sum, "transport checksum")

}

func TestChecksumsAreCompleted(t *testing.T) {
	for _, tc := range []struct {
		name     string
		v6, vlan bool
		protocol byte
		offset   int
		payload  string
	}{
		{"tcp4", false, false, 6, 16, "hello"},
		{"tcp6", true, false, 6, 16, "hello!"},
		{"udp4", false, false, 17, 6, "odd"},
		{"udp6 with a VLAN tag", true, true, 17, 6, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f, l3, l4 := packetOf(tc.v6, tc.vlan, tc.protocol, 0x18, []byte(tc.payload))
			fr := append(vnet(vnetNeedsChecksum, gsoNone, 0, l4, tc.offset), f...)
			var g segmenter
			g.reset(fr)
			got, err := g.next()
			require.NoError(t, err)
			requireChecksums(t, got, l3, l4, tc.v6, tc.protocol)
			require.Equal(t, tc.payload, string(got[len(got)-len(tc.payload):]))
			_, err = g.next()
			require.ErrorIs(t, err, io.EOF)
		})
	}
}

func TestAUDPChecksumOfZeroIsSentAsOnes(t *testing.T) {
	f, _, l4 := packetOf(false, false, 17, 0, make([]byte, 2))
	// The last word makes the sum all ones, so that its complement is 0.
	c := referenceSum(f[l4:])
	binary.BigEndian.PutUint16(f[len(f)-2:], ^c)
	var g segmenter
	g.reset(append(vnet(vnetNeedsChecksum, gsoNone, 0, l4, 6), f...))
	got, err := g.next()
	require.NoError(t, err)
	require.EqualValues(t, 0xffff, binary.BigEndian.Uint16(got[l4+6:]))
}

func TestLargeFramesAreCut(t *testing.T) {
	payload := make([]byte, 40001)
	for i := range payload {
		payload[i] = byte(i * 31)
	}
	for _, tc := range []struct {
		name     string
		v6, vlan bool
		protocol byte
		kind     byte
	}{
		{"tcp4", false, false, 6, gsoTCP4},
		{"tcp4 with a VLAN tag and ECN", false, true, 6, gsoTCP4 | gsoECN},
		{"tcp6", true, false, 6, gsoTCP6},
		{"udp4", false, false, 17, gsoUDP},
		{"udp6", true, false, 17, gsoUDP},
	} {
		t.Run(tc.name, func(t *testing.T) {
			const size = 1448
			f, l3, l4 := packetOf(tc.v6, tc.vlan, tc.protocol, 0x99, payload) // CWR ACK PSH FIN
			offset := map[byte]int{6: 16, 17: 6}[tc.protocol]
			var g segmenter
			g.reset(append(vnet(vnetNeedsChecksum, tc.kind, size, l4, offset), f...))
			var got []byte
			for i := 0; ; i++ {
				seg, err := g.next()
				if err == io.EOF {
					require.Equal(t, (len(payload)+size-1)/size, i)
					break
				}
				require.NoError(t, err)
				requireChecksums(t, seg, l3, l4, tc.v6, tc.protocol)
				header := 8
				last := len(got)+size >= len(payload)
				if tc.protocol == 6 {
					header = 20
					require.EqualValues(t, 0x1000+len(got), binary.BigEndian.Uint32(seg[l4+4:]))
					flags := seg[l4+13]
					require.Equal(t, i == 0, flags&tcpCWR != 0)
					require.Equal(t, last, flags&(tcpFIN|tcpPSH) != 0)
					require.NotZero(t, flags&0x10)
				} else {
					require.EqualValues(t, len(seg)-l4, binary.BigEndian.Uint16(seg[l4+4:]))
				}
				if tc.v6 {
					require.EqualValues(t, len(seg)-l4, binary.BigEndian.Uint16(seg[l3+4:]))
				} else {
					require.EqualValues(t, len(seg)-l3, binary.BigEndian.Uint16(seg[l3+2:]))
					require.EqualValues(t, 0x1234+i, binary.BigEndian.Uint16(seg[l3+4:]))
					require.EqualValues(t, 0xffff, referenceSum(seg[l3:l4]), "IP header checksum")
				}
				got = append(got, seg[l4+header:]...)
			}
			require.Equal(t, payload, got)
		})
	}
}

// Whatever header comes before whatever frame, cutting ends, and gives no more
// than was there.
func FuzzSegmenter(f *testing.F) {
	frame, _, l4 := packetOf(false, true, 6, 0x18, make([]byte, 3000))
	f.Add(append(vnet(vnetNeedsChecksum, gsoTCP4, 1000, l4, 16), frame...))
	f.Add(append(vnet(vnetNeedsChecksum, gsoUDP, 1, l4, 6), frame...))
	f.Add(append(vnet(vnetNeedsChecksum, gsoNone, 0, 65535, 65535), frame...))
	f.Add(vnet(0, gsoTCP6, 0, 0, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < vnetLen || len(b) > messageRoom {
			return
		}
		frame := len(b) - vnetLen
		var g segmenter
		g.reset(b)
		for n := 0; ; n++ {
			seg, err := g.next()
			if err != nil {
				require.True(t, err == io.EOF || err == errFrame)
				return
			}
			require.LessOrEqual(t, len(seg), frame)
			require.LessOrEqual(t, n, frame)
		}
	})
}

func BenchmarkCutLargeFrame(b *testing.B) {
	f, _, l4 := packetOf(false, false, 6, 0x18, make([]byte, 60000))
	fr := append(vnet(vnetNeedsChecksum, gsoTCP4, 1448, l4, 16), f...)
	var g segmenter
	b.ReportAllocs()
	b.SetBytes(60000)
	for b.Loop() {
		g.reset(fr)
		for {
			if _, err := g.next(); err != nil {
				break
			}
		}
	}
}
