package filter_test

import (
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/sockd/sockd/families/packet/filter"
	"github.com/stretchr/testify/require"
)

// payload is a UDP datagram to a port, of 3000 bytes, as its fragments are of.
func datagramTo(port int) []byte { return udpTo(port, make([]byte, 3000-8)) }

// split cuts what IP carries at offsets of 8 bytes.
func split(data []byte, size int) (parts [][]byte) {
	for len(data) > size {
		parts, data = append(parts, data[:size]), data[size:]
	}
	return append(parts, data)
}

// fragments4 are the fragments of a datagram in IPv4, behind an Ethernet header and VLAN tags.
func fragments4(id, port int, vlans ...int) (frames [][]byte) {
	parts := split(datagramTo(port), 1000)
	for i, part := range parts {
		p := ip4Of(17, part)
		wire.PutUint16(p[4:], uint16(id))
		offset := uint16(i * 125)
		if i < len(parts)-1 {
			offset |= 0x2000
		}
		wire.PutUint16(p[6:], offset)
		frames = append(frames, behindVLANs(kindIPv4, p, vlans))
	}
	return frames
}

func behindVLANs(kind int, p []byte, vlans []int) []byte {
	for i := len(vlans) - 1; i >= 0; i-- {
		p, kind = tagged(vlans[i], kind, p), kind8021Q
	}
	return ether(kind, p)
}

// fragments6 are those in IPv6, with a header of options for each hop before that of the fragment.
func fragments6(id uint32, port int, hops bool) (frames [][]byte) {
	parts := split(datagramTo(port), 1000)
	for i, part := range parts {
		offset := i * 1000
		if i < len(parts)-1 {
			offset |= 1
		}
		next, p := 44, joined([]byte{17, 0}, u16(offset), u32(id), part)
		if hops {
			next, p = 0, joined([]byte{44, 0, 1, 4, 0, 0, 0, 0}, p)
		}
		frames = append(frames, ether(kindIPv6, ip6Of(next, p)))
	}
	return frames
}

// follower is one under test, and what came out of it. It holds the frames themselves.
type follower struct {
	*filter.Follower[[]byte]
	out [][]byte
}

func newFollower(tb testing.TB, text string, limits filter.FollowLimits) *follower {
	tb.Helper()
	p := mustCompile(tb, filter.Options{Fragments: true}, text)
	return &follower{Follower: filter.NewFollower[[]byte](p, limits)}
}

func (f *follower) judge(frame []byte, at time.Duration) filter.Verdict {
	return f.judgePacket(&filter.Packet{Data: frame, Length: len(frame), Direction: filter.In}, at)
}

func (f *follower) judgePacket(p *filter.Packet, at time.Duration) filter.Verdict {
	v := f.Judge(p, int64(at))
	switch v {
	case filter.Hold:
		f.Keep(p.Data)
	case filter.Take:
		f.out = append(append(f.out, f.Released()...), p.Data)
	}
	return v
}

// balanced checks that each held packet has one end.
func (f *follower) balanced(tb testing.TB) filter.FollowStats {
	tb.Helper()
	s := f.Stats()
	require.Equal(tb, s.Held, s.Released+s.Dropped+s.Lost+uint64(s.Waiting), "%+v", s)
	return s
}

// sums stand for frames, and are shorter when a test prints them.
func sums(frames [][]byte) (out []uint32) {
	for _, f := range frames {
		out = append(out, crc32.ChecksumIEEE(f))
	}
	return out
}

func permutations(n int) (all [][]int) {
	if n == 0 {
		return [][]int{nil}
	}
	for _, p := range permutations(n - 1) {
		for i := range n {
			q := append([]int{}, p[:i]...)
			all = append(all, append(append(q, n-1), p[i:]...))
		}
	}
	return all
}

func TestFragmentsOfATakenDatagramAreTakenInAnyOrder(t *testing.T) {
	for name, frames := range map[string]func(port int) [][]byte{
		"IPv4":              func(port int) [][]byte { return fragments4(7, port) },
		"IPv4 in a VLAN":    func(port int) [][]byte { return fragments4(7, port, 100) },
		"IPv4 in two VLANs": func(port int) [][]byte { return fragments4(7, port, 100, 200) },
		"IPv6":              func(port int) [][]byte { return fragments6(7, port, false) },
	} {
		for _, order := range permutations(3) {
			t.Run(fmt.Sprintf("%s %v", name, order), func(t *testing.T) {
				f := newFollower(t, "(udp port 40001 or (vlan and udp port 40001) or (vlan and vlan and udp port 40001)) and fragments", filter.FollowLimits{})
				wanted, others := frames(40001), frames(53)
				for _, i := range order {
					f.judge(wanted[i], 0)
				}
				require.ElementsMatch(t, sums(wanted), sums(f.out))
				for _, i := range order { // the same ID, another datagram
					f.judge(others[i], 0)
				}
				require.Equal(t, 3, len(f.out))
				s := f.balanced(t)
				require.Zero(t, s.Waiting)
				require.Zero(t, s.Lost)
				require.Zero(t, s.Datagrams, "whole datagrams are forgotten")
			})
		}
	}
}

// A filter sees the first fragment of IPv6 as the packet would be if it were whole. So ports are not found
// behind other extension headers, as in whole packets, but what is counted from the IP header is.
func TestIPv6FragmentsBehindOtherHeaders(t *testing.T) {
	frames := fragments6(7, 40001, true)
	for text, want := range map[string]int{
		"ip6[50:2] = 40001 and fragments":                       3,
		"ip6 protochain 17 and ip6[50:2] = 40001 and fragments": 3,
		"ip6[50:2] = 40002 and fragments":                       0,
		"udp port 40001 and fragments":                          0,
	} {
		f := newFollower(t, text, filter.FollowLimits{})
		for _, i := range []int{2, 0, 1} {
			f.judge(frames[i], 0)
		}
		require.Equal(t, want, len(f.out), text)
		require.Zero(t, f.balanced(t).Lost)
	}
}

// An atomic fragment is a whole packet with a fragment header (RFC 6946).
func TestAtomicFragmentsAreWhole(t *testing.T) {
	p := joined([]byte{17, 0, 0, 0}, u32(7), udpTo(40001, nil))
	f := newFollower(t, "udp port 40001 and fragments", filter.FollowLimits{})
	require.Equal(t, filter.Take, f.judge(ether(kindIPv6, ip6Of(44, p)), 0))
	require.Zero(t, f.balanced(t).Datagrams)
}

func TestHeldFragmentsComeOutBeforeTheFirstOneAsTheyCame(t *testing.T) {
	f, frames := newFollower(t, "udp port 40001 and fragments", filter.FollowLimits{}), fragments4(1, 40001)
	require.Equal(t, filter.Hold, f.judge(frames[2], 0))
	require.Equal(t, filter.Hold, f.judge(frames[1], 0))
	require.Equal(t, filter.Take, f.judge(frames[0], 0))
	require.Equal(t, sums([][]byte{frames[2], frames[1], frames[0]}), sums(f.out))
	require.Equal(t, filter.Drop, f.judge(arp, 0))
	require.Empty(t, f.Released())
}

func TestDatagramsAreToldApart(t *testing.T) {
	other := func(frames [][]byte, at int, to byte) [][]byte {
		for _, f := range frames {
			f[at] = to
		}
		return frames
	}
	for name, second := range map[string][][]byte{
		"by their ID":          fragments4(8, 53),
		"by their source":      other(fragments4(7, 53), 29, 9),
		"by their destination": other(fragments4(7, 53), 33, 9),
		"by their protocol":    other(fragments4(7, 53), 23, 136),
		"by their VLAN":        fragments4(7, 53, 5),
		"by their IP version":  fragments6(7, 53, false),
	} {
		t.Run(name, func(t *testing.T) {
			f, first := newFollower(t, "udp port 40001 and fragments", filter.FollowLimits{}), fragments4(7, 40001)
			for _, frame := range [][]byte{first[2], second[2], second[0], first[0], second[1], first[1]} {
				f.judge(frame, 0)
			}
			require.Equal(t, sums([][]byte{first[2], first[0], first[1]}), sums(f.out))
			require.Equal(t, uint64(1), f.balanced(t).Dropped)
		})
	}
}

// A host that forwards sees each fragment on two interfaces, and each at its way in and out.
func TestDatagramsAreToldApartByWhereTheyWereSeen(t *testing.T) {
	f, frames := newFollower(t, "ifindex 1 and inbound and udp port 40001 and fragments", filter.FollowLimits{}), fragments4(7, 40001)
	for _, frame := range frames {
		for iface := range uint32(2) {
			for _, d := range []filter.Direction{filter.In, filter.Out} {
				v := f.judgePacket(&filter.Packet{Data: frame, Length: len(frame), Interface: 1 + iface, Direction: d}, 0)
				require.Equal(t, iface == 0 && d == filter.In, v == filter.Take)
			}
		}
	}
	require.Equal(t, sums(frames), sums(f.out))
}

func TestAnIDIsUsedAgain(t *testing.T) {
	f := newFollower(t, "udp port 40001 and fragments", filter.FollowLimits{})
	mine, others := fragments4(7, 40001), fragments4(7, 53)
	f.judge(mine[0], 0)
	f.judge(mine[1], 0) // the last one never came
	f.judge(others[0], time.Second)
	require.Equal(t, filter.Drop, f.judge(others[1], time.Second))
	require.Equal(t, filter.Drop, f.judge(others[2], time.Second))
	require.Equal(t, filter.Take, f.judge(mine[0], 2*time.Second))
	require.Equal(t, filter.Take, f.judge(mine[1], 2*time.Second))
}

func TestOverlappingFragmentsFollow(t *testing.T) {
	f, frames := newFollower(t, "udp port 40001 and fragments", filter.FollowLimits{}), fragments4(7, 40001)
	overlap := joined(frames[1])
	wire.PutUint16(overlap[14+6:], 0x2000|100)
	for _, frame := range [][]byte{overlap, frames[0], overlap, frames[1], frames[1], frames[2]} {
		f.judge(frame, 0)
	}
	require.Equal(t, 6, len(f.out))
	require.Zero(t, f.balanced(t).Datagrams)
}

// Fragments that touch and overlap in many separate parts end in a whole, or are given up by
// their age: never too early.
func TestADatagramIsWholeOnlyWhenAllOfItWasSeen(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	parts := split(datagramTo(40001), 200)
	for range 200 {
		f := newFollower(t, "udp port 40001 and fragments", filter.FollowLimits{})
		for _, i := range r.Perm(len(parts)) {
			p := ip4Of(17, parts[i])
			wire.PutUint16(p[6:], uint16(i*25))
			if i < len(parts)-1 {
				p[6] |= 0x20
			}
			f.judge(ether(kindIPv4, p), 0)
		}
		require.Equal(t, len(parts), len(f.out))
		require.Zero(t, f.balanced(t).Lost)
	}
}

func TestWhatMatchesByItselfIsTaken(t *testing.T) {
	f := newFollower(t, "host 10.0.0.1 and fragments", filter.FollowLimits{})
	for _, frame := range fragments4(7, 53)[1:] {
		require.Equal(t, filter.Take, f.judge(frame, 0))
	}
	require.Zero(t, f.balanced(t).Held)
}

func TestAFirstFragmentThatNeverComesIsALoss(t *testing.T) {
	f, frames := newFollower(t, "udp port 40001 and fragments", filter.FollowLimits{Age: time.Second}), fragments4(7, 40001)
	f.judge(frames[1], 0)
	f.judge(frames[2], 900*time.Millisecond)
	f.Expire(int64(time.Second))
	require.Equal(t, 2, f.balanced(t).Waiting)
	require.Equal(t, 2000, f.Stats().WaitingBytes-2*(14+20))
	f.Expire(int64(time.Second) + 1)
	s := f.balanced(t)
	require.Equal(t, uint64(2), s.Lost)
	require.Zero(t, s.WaitingBytes)
	require.Equal(t, filter.Take, f.judge(frames[0], 2*time.Second), "too late for the others")
	require.Equal(t, 1, len(f.out))
}

func TestAVerdictIsForgottenWithItsAge(t *testing.T) {
	f, frames := newFollower(t, "udp port 40001 and fragments", filter.FollowLimits{}), fragments4(7, 40001)
	f.judge(frames[0], 0)
	require.Equal(t, filter.Take, f.judge(frames[1], 30*time.Second))
	require.Equal(t, filter.Hold, f.judge(frames[2], 31*time.Second))
}

func TestTheEndOfACaptureLosesWhatIsHeld(t *testing.T) {
	f, frames := newFollower(t, "udp port 40001 and fragments", filter.FollowLimits{}), fragments4(7, 40001)
	f.judge(frames[1], 0)
	f.Flush()
	require.Equal(t, uint64(1), f.balanced(t).Lost)
}

func TestWhoDoesNotKeepLoses(t *testing.T) {
	f, frames := newFollower(t, "udp port 40001 and fragments", filter.FollowLimits{}), fragments4(7, 40001)
	packet := &filter.Packet{Data: frames[1], Length: len(frames[1])}
	require.Equal(t, filter.Hold, f.Judge(packet, 0))
	require.Equal(t, uint64(1), f.balanced(t).Lost)
	f.Expire(int64(time.Hour)) // takes what was to be kept away
	f.Keep(frames[1])
	s := f.balanced(t)
	require.Equal(t, uint64(1), s.Lost)
	require.Zero(t, s.Waiting)
}

func TestAFloodOfIDsStaysWithinTheBound(t *testing.T) {
	const flood = 100_000
	for _, part := range []int{0, 1} {
		f := newFollower(t, "udp port 40001 and fragments", filter.FollowLimits{Datagrams: 256, Bytes: 64 << 10})
		for i := range flood {
			frame := fragments4(i&0xffff, 53)[part]
			frame[29] = byte(i >> 16) // the source
			f.judge(frame, time.Duration(i))
			s := f.Stats()
			require.LessOrEqual(t, s.Datagrams, 256)
			require.LessOrEqual(t, s.WaitingBytes, 64<<10)
		}
		s := f.balanced(t)
		if part == 0 {
			require.Equal(t, uint64(flood-256), s.Forgotten)
			require.Zero(t, s.Held)
			continue
		}
		require.Equal(t, uint64(flood), s.Held)
		require.Equal(t, (64<<10)/(14+20+1000), s.Waiting)
		mine := fragments4(7, 40001)
		for _, frame := range mine {
			f.judge(frame, flood)
		}
		require.Equal(t, sums(mine), sums(f.out), "what comes after the flood is followed")
	}
}

func TestAPacketThatIsLargerThanTheBoundIsLost(t *testing.T) {
	f, frames := newFollower(t, "udp port 40001 and fragments", filter.FollowLimits{Bytes: 500}), fragments4(7, 40001)
	require.Equal(t, filter.Drop, f.judge(frames[1], 0))
	require.Equal(t, uint64(1), f.balanced(t).Lost)
}

func TestWithoutTheWordNothingIsFollowed(t *testing.T) {
	f, frames := newFollower(t, "udp port 40001", filter.FollowLimits{}), fragments4(7, 40001)
	require.Equal(t, filter.Take, f.judge(frames[0], 0))
	require.Equal(t, filter.Drop, f.judge(frames[1], 0))
	all := filter.NewFollower[int](nil, filter.FollowLimits{})
	require.Equal(t, filter.Take, all.Judge(&filter.Packet{Data: arp, Length: len(arp)}, 0))
}

func TestFragmentsStandBesideTheWholeFilter(t *testing.T) {
	for text, column := range map[string]int{
		"fragments":                           0,
		"udp port 40001 and fragments":        0,
		"fragments and udp":                   0,
		"tcp or udp and fragments":            0,
		"udp and (fragments and port 53)":     0,
		"tcp or fragments":                    8,
		"not fragments":                       5,
		"udp and (tcp or fragments)":          17,
		"udp and not (port 53 and fragments)": 26,
		"tcp and fragments or udp":            9,
	} {
		p, err := filter.Options{Fragments: true}.Compile(text, filter.Ethernet)
		if column == 0 {
			require.NoError(t, err, text)
			require.True(t, p.Fragments(), text)
			continue
		}
		var e *filter.Error
		require.ErrorAs(t, err, &e, text)
		require.Equal(t, column, e.Column, text)
	}
	require.False(t, mustCompile(t, filter.Options{Fragments: true}, "udp").Fragments())
	require.False(t, (*filter.Program)(nil).Fragments())
}

func TestWhatIsNoFragmentIsJudgedWithoutAllocating(t *testing.T) {
	f := newFollower(t, "udp port 53 and fragments", filter.FollowLimits{})
	packets := []filter.Packet{{Data: dns, Length: len(dns)}, {Data: web6, Length: len(web6)}, {Data: web100, Length: len(web100)}, {Data: arp, Length: len(arp)}}
	require.Zero(t, testing.AllocsPerRun(100, func() {
		for i := range packets {
			f.Judge(&packets[i], 0)
		}
	}))
}

// FuzzFollower: no bytes make it panic or lose count.
func FuzzFollower(f *testing.F) {
	for _, frame := range append(append(fragments4(7, 40001, 5), fragments6(7, 40001, true)...), web, arp) {
		f.Add(frame, uint16(1))
	}
	f.Fuzz(func(t *testing.T, frame []byte, cut uint16) {
		p, err := filter.Options{Fragments: true}.Compile("udp port 40001 and fragments", filter.Ethernet)
		require.NoError(t, err)
		follow := &follower{Follower: filter.NewFollower[[]byte](p, filter.FollowLimits{Datagrams: 2, Bytes: 3000})}
		for i, data := range [][]byte{frame, frame[:min(len(frame), int(cut))], frame} {
			follow.judge(data, time.Duration(i)*20*time.Second)
			follow.balanced(t)
		}
		follow.Flush()
		require.Zero(t, follow.balanced(t).Waiting)
	})
}

func BenchmarkFollower(b *testing.B) {
	frames := fragments4(7, 40001)
	for name, packets := range map[string][][]byte{"no fragment": {dns}, "in order": frames, "in reverse": {frames[2], frames[1], frames[0]}} {
		b.Run(name, func(b *testing.B) {
			p := mustCompile(b, filter.Options{Fragments: true}, "udp port 40001 and fragments")
			f := filter.NewFollower[int](p, filter.FollowLimits{})
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				data := packets[i%len(packets)]
				if f.Judge(&filter.Packet{Data: data, Length: len(data)}, int64(i)) == filter.Hold {
					f.Keep(i)
				}
			}
		})
	}
}
