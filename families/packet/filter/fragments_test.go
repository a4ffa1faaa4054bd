package filter

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheKernelLetsFragmentsPass(t *testing.T) {
	ip4 := func(flags uint16) []byte {
		h := make([]byte, 28)
		h[0], h[9] = 0x45, ipUDP
		binary.BigEndian.PutUint16(h[6:], flags)
		return h
	}
	ip6 := func(next byte) []byte {
		h := make([]byte, 48)
		h[0], h[6] = 0x60, next
		return h
	}
	const more, dont = 0x2000, 0x4000
	for _, tc := range []struct {
		name   string
		kind   uint16
		packet []byte
		want   bool
	}{
		{"IPv4, whole", etherIP, ip4(dont), false},
		{"IPv4, the first", etherIP, ip4(more), true},
		{"IPv4, in the middle", etherIP, ip4(more | 100), true},
		{"IPv4, the last", etherIP, ip4(200), true},
		{"IPv4, cut off", etherIP, ip4(200)[:7], false},
		{"IPv6, whole", etherIP6, ip6(ipUDP), false},
		{"IPv6, a fragment", etherIP6, ip6(ipFragment), true},
		{"IPv6, perhaps one behind options", etherIP6, ip6(ipHopByHop), true},
		{"ARP", etherARP, ip4(200), false},
	} {
		for _, tags := range []int{0, 1, 2, 3} {
			program, err := fragmentProgram(Ethernet)
			require.NoError(t, err)
			frame := make([]byte, 12)
			for range tags {
				frame = append(frame, 0x81, 0, 0, 5)
			}
			frame = slices.Concat(binary.BigEndian.AppendUint16(frame, tc.kind), tc.packet)
			require.Equal(t, tc.want && tags <= mostTags, program.Run(frame, uint32(len(frame)), nil), "%s, %d tags", tc.name, tags)
		}
		if tc.kind == etherARP {
			continue
		}
		for link, header := range map[LinkType][]byte{Raw: nil, LinuxSLL2: slices.Concat(binary.BigEndian.AppendUint16(nil, tc.kind), make([]byte, 18))} {
			program, err := fragmentProgram(link)
			require.NoError(t, err)
			frame := slices.Concat(header, tc.packet)
			require.Equal(t, tc.want, program.Run(frame, uint32(len(frame)), nil), "%s, link type %d", tc.name, link)
		}
	}
}
