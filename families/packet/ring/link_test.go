package ring

import (
	"encoding/binary"
	"fmt"
	"os"
	"testing"
	"unsafe"

	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// tun makes a tun interface of a hardware type. What is written to it is received
// by the namespace.
func tun(t *testing.T, ns *familytest.NS, name string, hardware int) *os.File {
	t.Helper()
	var fd int
	var err error
	ns.Do(func() {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			return
		}
		req, _ := unix.NewIfreq(name)
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err == nil {
			err = unix.IoctlSetInt(fd, unix.TUNSETLINK, hardware)
		}
	})
	require.NoError(t, err)
	f := os.NewFile(uintptr(fd), name)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	require.NoError(t, ns.Command("ip", "link", "set", name, "up").Run())
	return f
}

// ipPacket is an IPv4 packet with the test's mark in it.
func ipPacket(length int) []byte {
	p := make([]byte, length)
	copy(p, []byte{0x45, 0, 0, byte(length), 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2})
	copy(p[20:], "\x88\xb5")
	return p
}

func tagged(frame []byte, tag string) []byte {
	return append(append(append([]byte(nil), frame[:12]...), tag...), frame[12:]...)
}

// sll2 is the header of a packet that was received by an interface without addresses.
func sll2(protocol uint16, index int, hardware uint16, kind PacketType) []byte {
	b := binary.BigEndian.AppendUint16(nil, protocol)
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(index))
	b = binary.BigEndian.AppendUint16(b, hardware)
	return append(b, byte(kind), 0, 0, 0, 0, 0, 0, 0, 0, 0)
}

// One ring on all interfaces, and one on each: the frames have the link header of
// their interface, whichever ring they are in.
func TestFramesHaveTheirTrueLinkHeader(t *testing.T) {
	a, b := pair(t)
	raw, odd := tun(t, b, "tun0", unix.ARPHRD_NONE), tun(t, b, "odd0", unix.ARPHRD_PPP)
	s := newSender(t, a, "v0")
	anyRing := mustOpen(t, b, Any, small)
	require.Equal(t, Interface{Name: Any}, anyRing.Interface())
	write := func(f *os.File) func([]byte) {
		return func(p []byte) {
			_, err := f.Write(p)
			require.NoError(t, err)
		}
	}
	oddIndex := mustLookup(t, b, "odd0").Index
	for _, tt := range []struct {
		name, iface string
		send        func([]byte)
		sent, want  []byte
		link        pcapng.LinkType
		hardware    uint16
		kind        PacketType
	}{
		{"Ethernet", "v1", s.send, frame(1, 60), frame(1, 60), pcapng.Ethernet, unix.ARPHRD_ETHER, OtherHost},
		{"Ethernet with a tag", "v1", s.send, tagged(frame(2, 60), "\x81\x00\xe0\x64"), tagged(frame(2, 60), "\x81\x00\xe0\x64"), pcapng.Ethernet, unix.ARPHRD_ETHER, OtherHost},
		{"a tunnel", "tun0", write(raw), ipPacket(40), ipPacket(40), pcapng.Raw, unix.ARPHRD_NONE, Host},
		{"hardware with a header of its own", "odd0", write(odd), ipPacket(41),
			append(sll2(unix.ETH_P_IP, oddIndex, unix.ARPHRD_PPP, Host), ipPacket(41)...), pcapng.LinuxSLL2, unix.ARPHRD_PPP, Host},
	} {
		t.Run(tt.name, func(t *testing.T) {
			iface := mustLookup(t, b, tt.iface)
			named := mustOpen(t, b, tt.iface, small)
			require.Equal(t, Interface{Name: tt.iface, Index: iface.Index, Hardware: tt.hardware, Link: tt.link}, named.Interface())
			tt.send(tt.sent)
			for _, r := range []*Ring{anyRing, named} {
				f := next(t, r, 1)[0]
				require.Equal(t, tt.want, f.Data)
				require.Equal(t, len(tt.want), f.Len)
				require.Equal(t, tt.link, f.Link)
				require.Equal(t, tt.hardware, f.Hardware)
				require.Equal(t, iface.Index, f.Ifindex)
				require.Equal(t, tt.kind, f.Type)
			}
			require.NoError(t, named.Close())
		})
	}
}

// What goes out of a tunnel begins at its network header, too.
func TestWhatGoesOutOfATunnelIsRaw(t *testing.T) {
	ns := familytest.NewNS(t)
	tun(t, ns, "tun0", unix.ARPHRD_NONE)
	r, s := mustOpen(t, ns, "tun0", small), newSender(t, ns, "tun0")
	s.send(ipPacket(40))
	f := next(t, r, 1)[0]
	require.Equal(t, ipPacket(40), f.Data)
	require.Equal(t, Outgoing, f.Type)
	require.Equal(t, pcapng.Raw, f.Link)
}

func mustLookup(t *testing.T, ns *familytest.NS, name string) Interface {
	t.Helper()
	i, err := lookupIn(ns, name)
	require.NoError(t, err)
	return i
}

func TestLinkOf(t *testing.T) {
	for hardware, want := range map[uint16]pcapng.LinkType{
		unix.ARPHRD_ETHER: pcapng.Ethernet, unix.ARPHRD_LOOPBACK: pcapng.Ethernet,
		unix.ARPHRD_NONE: pcapng.Raw, unix.ARPHRD_TUNNEL: pcapng.Raw, unix.ARPHRD_TUNNEL6: pcapng.Raw,
		unix.ARPHRD_SIT: pcapng.Raw, unix.ARPHRD_RAWIP: pcapng.Raw, unix.ARPHRD_IPGRE: pcapng.Raw,
		unix.ARPHRD_PPP: pcapng.LinuxSLL2, unix.ARPHRD_INFINIBAND: pcapng.LinuxSLL2, unix.ARPHRD_CAN: pcapng.LinuxSLL2, 0: pcapng.LinuxSLL2,
	} {
		require.Equal(t, want, LinkOf(hardware), "hardware %d", hardware)
	}
}

// Words of 32 bits can be written where an Ethernet frame lies.
func TestEthernetFramesAreAligned(t *testing.T) {
	a, b := pair(t)
	r, s := mustOpen(t, b, "v1", small), newSender(t, a, "v0")
	for i := range 8 {
		s.send(frame(uint32(i), 60+i))
		s.send(tagged(frame(uint32(i), 60+i), "\x81\x00\x00\x64"))
	}
	for seen := 0; seen < 16; {
		blk, err := r.Next()
		require.NoError(t, err)
		for it := blk.Frames(); it.Next(); seen++ {
			require.Zero(t, uintptr(unsafe.Pointer(&it.Frame.Data[0]))%4)
		}
		blk.Release()
	}
}

// Two shapes of what the kernel puts into a block, by its own arithmetic
// (net/packet/af_packet.c, tpacket_rcv).
const (
	kernelHeader = 68 // TPACKET3_HDRLEN, sockaddr_ll included
	kernelAlign  = 16 // TPACKET_ALIGNMENT
	kernelLeast  = 16 // is left for a link header at least
	firstPacket  = 48 // BLK_HDR_LEN
)

// block is a Block with one packet as the kernel would write it.
func block(hardware uint16, linkHeader, payload []byte, tci int) *Block {
	align := func(n, to int) int { return (n + to - 1) / to * to }
	network := align(kernelHeader+max(kernelLeast, len(linkHeader)), kernelAlign) + reserve
	mac := network - len(linkHeader)
	b := &Block{mem: make([]byte, align(firstPacket+network+len(payload), 8))}
	for i := range b.mem {
		b.mem[i] = 0xee
	}
	*b.desc() = unix.TpacketHdrV1{Num_pkts: 1, Offset_to_first_pkt: firstPacket}
	h := (*unix.Tpacket3Hdr)(unsafe.Pointer(&b.mem[firstPacket]))
	ll := (*unix.RawSockaddrLinklayer)(unsafe.Pointer(&b.mem[firstPacket+headerLen]))
	length := uint32(len(linkHeader) + len(payload))
	*h = unix.Tpacket3Hdr{Snaplen: length, Len: length, Mac: uint16(mac), Net: uint16(network), Sec: 1}
	if tci >= 0 {
		h.Status = unix.TP_STATUS_VLAN_VALID
		h.Hv1.Vlan_tci = uint32(tci)
	}
	*ll = unix.RawSockaddrLinklayer{Ifindex: 5, Hatype: hardware, Protocol: 0x0008, Halen: 0}
	copy(b.mem[firstPacket+mac:], linkHeader)
	copy(b.mem[firstPacket+network:], payload)
	return b
}

// There is room in front of every packet for what is put there, however long its link
// header is, and what is put there touches neither headers nor payload.
func TestThereIsRoomInFrontOfEveryPacket(t *testing.T) {
	payload := []byte("payload")
	for length := range 64 {
		header := make([]byte, length)
		for i := range header {
			header[i] = byte(i)
		}
		for _, tci := range []int{-1, 0x64} {
			t.Run(fmt.Sprintf("link header of %d bytes, tag %d", length, tci), func(t *testing.T) {
				require.Equal(t, payload, rebuilt(t, block(unix.ARPHRD_NONE, header, payload, tci)))

				cooked, body := sll2(unix.ETH_P_IP, 5, unix.ARPHRD_PPP, Host), payload
				if tci >= 0 {
					cooked, body = sll2(unix.ETH_P_8021Q, 5, unix.ARPHRD_PPP, Host), append([]byte{0, 0x64, 8, 0}, payload...)
				}
				require.Equal(t, append(cooked, body...), rebuilt(t, block(unix.ARPHRD_PPP, header, payload, tci)))

				whole := append(append([]byte(nil), header...), payload...)
				if tci >= 0 && len(whole) >= macPairLen {
					whole = tagged(whole, "\x81\x00\x00\x64")
				}
				require.Equal(t, whole, rebuilt(t, block(unix.ARPHRD_ETHER, header, payload, tci)))
			})
		}
	}
}

// rebuilt is the one frame of a block; its addresses must be what they were.
func rebuilt(t *testing.T, b *Block) []byte {
	t.Helper()
	address := string(b.mem[firstPacket+headerLen : firstPacket+sockaddrEnd])
	it := b.Frames()
	require.True(t, it.Next())
	require.Equal(t, address, string(b.mem[firstPacket+headerLen:firstPacket+sockaddrEnd]))
	require.Equal(t, len(it.Frame.Data), it.Frame.Len)
	data := it.Frame.Data
	require.False(t, it.Next())
	return data
}

// The memory of an adopted socket is outside bytes: whatever is in it, a walk ends,
// and what it shows lies in the block.
func FuzzBlock(f *testing.F) {
	for _, hardware := range []uint16{unix.ARPHRD_ETHER, unix.ARPHRD_NONE, unix.ARPHRD_PPP} {
		f.Add(block(hardware, make([]byte, 14), []byte("payload"), 1).mem)
		f.Add(block(hardware, nil, []byte("payload"), -1).mem)
	}
	f.Fuzz(func(t *testing.T, mem []byte) {
		if len(mem) < firstPacket {
			return // a ring's block is 128 KiB at least
		}
		b := &Block{mem: append(make([]byte, 0, len(mem)), mem...)}
		frames := 0
		for it := b.Frames(); it.Next(); frames++ {
			require.LessOrEqual(t, len(it.Frame.Data), len(mem))
		}
		require.LessOrEqual(t, frames, b.Len())
		require.LessOrEqual(t, b.Len(), len(mem)/sockaddrEnd)
	})
}
