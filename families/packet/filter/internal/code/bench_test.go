package code

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// tcpFrame goes from port 5000 to 80, between 10.0.0.2 and 10.0.0.1.
func tcpFrame() []byte {
	f := make([]byte, 60)
	copy(f[12:], []byte{8, 0, 0x45})
	f[23] = 6
	copy(f[26:], []byte{10, 0, 0, 2, 10, 0, 0, 1, 0x13, 0x88, 0, 80})
	f[47] = 0x12
	return f
}

func mustFind(tb testing.TB, filter string) real {
	tb.Helper()
	for _, f := range realPrograms(tb) {
		if f.filter == filter {
			return f
		}
	}
	require.Fail(tb, "no such program", filter)
	return real{}
}

func BenchmarkRun(b *testing.B) {
	for _, bb := range []struct{ name, filter string }{
		{"tcp port 80", "tcp port 80"},
		{"30 instructions", "(tcp or udp) and (host 10.0.0.1 or host 10.0.0.2) and (port 53 or port 443) and not net 192.168.0.0/16"},
		{"arithmetic", "ip and (ip[2:2]-((ip[0]&0xf)<<2)-((tcp[12]&0xf0)>>2))!=0"},
	} {
		b.Run(bb.name, func(b *testing.B) {
			built := NewBuilder()
			p := mustAssemble(b, built, graphOf(b, built, classicOf(b, mustFind(b, bb.filter).text["plain"])), false)
			frame := tcpFrame()
			b.ReportAllocs()
			for b.Loop() {
				p.Run(frame, 60, nil)
			}
			b.ReportMetric(float64(p.Len()), "instructions")
		})
	}
}

func BenchmarkAssemble(b *testing.B) {
	raw := classicOf(b, mustFind(b, "tcp port 80").text["plain"])
	b.ReportAllocs()
	for b.Loop() {
		built := NewBuilder()
		mustAssemble(b, built, graphOf(b, built, raw), false)
	}
}

func TestRunAllocatesNothing(t *testing.T) {
	for _, f := range realPrograms(t) {
		p, frame := programOf(classicOf(t, f.text["ddd"])), tcpFrame()
		require.Zero(t, testing.AllocsPerRun(10, func() { p.Run(frame, 60, nil) }), f.filter)
	}
}
