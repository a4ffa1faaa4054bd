package capture

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/stretchr/testify/require"
)

const (
	protoTCP = 6
	protoUDP = 17
)

// marked is the Ethernet addresses of the frames that tests send.
const marked = "\x02\x00\x00\x00\x00\x09\x02\x00\x00\x00\x00\x01"

// ipv4 is a packet from 10.9.1.1 to 10.9.1.2, with the fragment's ID and flags.
func ipv4(protocol byte, id, flags uint16, payload []byte) []byte {
	p := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 9, 1, 1, 10, 9, 1, 2}
	binary.BigEndian.PutUint16(p[2:], uint16(20+len(payload)))
	binary.BigEndian.PutUint16(p[4:], id)
	binary.BigEndian.PutUint16(p[6:], flags)
	return append(p, payload...)
}

// toPort is a header of TCP or UDP, as long as that of TCP.
func toPort(port uint16) []byte {
	h := binary.BigEndian.AppendUint16(nil, 4242)
	return append(binary.BigEndian.AppendUint16(h, port), 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0)
}

// ethernet is a marked frame with VLAN tags, each its EtherType and its ID.
func ethernet(kind uint16, payload []byte, tags ...[2]uint16) []byte {
	f := []byte(marked)
	for _, t := range tags {
		f = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(f, t[0]), t[1])
	}
	return append(binary.BigEndian.AppendUint16(f, kind), payload...)
}

// tagFrames are what tests of tags send.
func tagFrames() map[string][]byte {
	tcp := func(port uint16, tags ...[2]uint16) []byte {
		return ethernet(0x0800, ipv4(protoTCP, 1, 0, toPort(port)), tags...)
	}
	v100, v7, s100 := [2]uint16{0x8100, 100}, [2]uint16{0x8100, 7}, [2]uint16{0x88a8, 100}
	return map[string][]byte{
		"80": tcp(80), "81": tcp(81), "100:80": tcp(80, v100), "100:81": tcp(81, v100), "7:80": tcp(80, v7),
		"100:7:80": tcp(80, v100, v7), "s100:7:80": tcp(80, s100, v7), "100:7:81": tcp(81, v100, v7),
	}
}

// tagRules are what filters take of them.
var tagRules = map[string]string{
	"tcp port 80":                           "80",
	"vlan":                                  "100:7:80 100:7:81 100:80 100:81 7:80 s100:7:80",
	"not vlan":                              "80 81",
	"vlan 100":                              "100:7:80 100:7:81 100:80 100:81 s100:7:80",
	"not vlan 100 and ether[12:2] != 0x806": "7:80 80 81",
	"vlan 100 and tcp port 80":              "100:80",
	"vlan 100 and not tcp port 80":          "100:7:80 100:7:81 100:81 s100:7:80",
	"tcp port 80 or vlan":                   "100:7:80 100:7:81 100:80 100:81 7:80 80 s100:7:80",
	"vlan or tcp port 80":                   "100:7:80 100:7:81 100:80 100:81 7:80 80 s100:7:80", // to libpcap the port is behind the tag
	"vlan 7":                                "7:80",
	"vlan 100 and vlan 7":                   "100:7:80 100:7:81 s100:7:80",
	"vlan and vlan":                         "100:7:80 100:7:81 s100:7:80",
	"vlan 100 and vlan 7 and tcp port 80":   "100:7:80 s100:7:80",
	"vlan 100 and (tcp port 80 or vlan 7)":  "100:7:80 100:7:81 100:80 s100:7:80",
	"(vlan 7 or vlan 100) and tcp port 80":  "100:80 7:80",
	"tcp port 81 or (vlan 100 and vlan 7 and tcp dst port 81)": "100:7:81 81",
}

// likeTcpdump are those that mean the same to libpcap.
var likeTcpdump = []string{
	"tcp port 80", "vlan", "not vlan", "vlan 100", "vlan 100 and tcp port 80", "tcp port 80 or vlan", "vlan 7", "vlan 100 and vlan 7", "vlan 100 and vlan 7 and tcp port 80",
}

// sendTagged sends all of them both ways through v1: those that come have their outer tag
// taken out by the kernel, those that go have it in place.
func (n *net2) sendTagged(back families.Socket) {
	n.Helper()
	for _, f := range tagFrames() {
		n.sendFrame(f)
		_, err := families.SendAll(n.Context(), back, &families.Msg{Data: f})
		require.NoError(n, err)
	}
}

// namesOf are the names of tagFrames that went one way, sorted; what others sent is left out.
func namesOf(t *testing.T, packets []pcapng.Packet, way pcapng.Direction) string {
	t.Helper()
	var out []string
	for _, p := range packets {
		if p.Direction != way || !strings.HasPrefix(string(p.Data), marked) {
			continue
		}
		name := ""
		for n, f := range tagFrames() {
			if bytes.Equal(f, p.Data) {
				name = n
			}
		}
		require.NotEmpty(t, name, "no such frame was sent: %x", p.Data)
		out = append(out, name)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func requireTagRule(t *testing.T, filter string, packets []pcapng.Packet) {
	t.Helper()
	require.Equal(t, tagRules[filter], namesOf(t, packets, pcapng.Inbound), "%s: in", filter)
	require.Equal(t, tagRules[filter], namesOf(t, packets, pcapng.Outbound), "%s: out", filter)
}

// The kernel's filter is that of this subscriber alone.
func TestFiltersOfTagsMeanWhatTheySay(t *testing.T) {
	n := newNet(t)
	back := n.sender(n.b, "v1")
	for filter := range tagRules {
		t.Run(filter, func(t *testing.T) {
			sub := *n
			sub.T = t
			r := sub.start(model.CaptureSpec{Filter: filter})
			sub.sendTagged(back)
			requireTagRule(t, filter, r.finish().packets)
		})
	}
}

// The kernel's filter is the union of all, on the interface and on all of them.
func TestFiltersOfTagsMeanTheSameTogether(t *testing.T) {
	n := newNet(t)
	back := n.sender(n.b, "v1")
	for _, source := range []string{"v1", "any", "v*"} {
		runs := map[string]*run{}
		for filter := range tagRules {
			runs[filter] = n.start(model.CaptureSpec{Source: source, Filter: filter})
		}
		n.sendTagged(back)
		for filter, r := range runs {
			requireTagRule(t, filter, r.finish().packets)
		}
	}
}

// A file that the daemon wrote is filtered later as the packets would have been, by us and
// by tcpdump.
func TestFiltersOfTagsMeanTheSameInAFile(t *testing.T) {
	n := newNet(t)
	back := n.sender(n.b, "v1")
	r := n.startFiles(t.TempDir(), model.CaptureSpec{}, model.FileSpec{}, nil)
	n.sendTagged(back)
	r.received(int64(2 * len(tagFrames())))
	r.end()
	require.NoError(t, r.wait())
	b, err := os.ReadFile(r.opened[0])
	require.NoError(t, err)
	all := readDump(t, b).packets
	for filter := range tagRules {
		program, err := keptProgram(filter, pcapng.Ethernet)
		require.NoError(t, err)
		taken := slices.DeleteFunc(slices.Clone(all), func(p pcapng.Packet) bool { return !program.Match(p.Data, p.Len) })
		requireTagRule(t, filter, taken)
		if slices.Contains(likeTcpdump, filter) {
			theirs := output(t, "tcpdump", "-nn", "-r", r.opened[0], filter)
			require.Equal(t, len(taken), strings.Count(theirs, "\n"), "%s: %s", filter, theirs)
		}
	}
}

// What the kernel itself sends and receives on VLAN interfaces has its tag beside the frame in
// both directions.
func TestTagsOfVLANInterfaces(t *testing.T) {
	n := newNet(t)
	for _, side := range []struct {
		ns          *familytest.NS
		iface, last string
	}{{n.a, "v0", "1"}, {n.b, "v1", "2"}} {
		familytest.Need(t, addVLAN(side.ns, side.iface, "one", 100))
		familytest.Need(t, addVLAN(side.ns, "one", "two", 7))
		n.ip(side.ns, "addr add 10.10.0."+side.last+"/24 dev one")
		n.ip(side.ns, "addr add 10.11.0."+side.last+"/24 dev two")
		n.ip(side.ns, "link set one up")
		n.ip(side.ns, "link set two up")
	}
	want := map[string]int{
		"udp port 4711": 2, "vlan 100 and udp port 4711": 2, "vlan 100 and vlan 7 and udp port 4711": 2,
		"udp port 4711 or vlan and udp port 4711": 4, "vlan and vlan and vlan": 0, "vlan 7 and udp port 4711": 0,
	}
	runs := map[string]*run{}
	for filter := range want {
		runs[filter] = n.start(model.CaptureSpec{Filter: filter})
	}
	for _, network := range []string{"10.9.0.", "10.10.0.", "10.11.0."} {
		n.echoUDP(network+"2:4711", 100)
	}
	for filter, r := range runs {
		var in, out int
		for _, p := range r.finish().packets {
			if p.Direction == pcapng.Inbound {
				in++
			} else {
				out++
			}
		}
		require.Equal(t, want[filter], in+out, filter)
		require.Equal(t, in, out, filter)
	}
}

// addVLAN makes a VLAN interface, where the kernel has any.
func addVLAN(ns *familytest.NS, below, name string, id int) error {
	out, err := ns.Command("ip", "link", "add", "link", below, "name", name, "type", "vlan", "id", strconv.Itoa(id)).CombinedOutput()
	switch {
	case strings.Contains(string(out), "Unknown device type"):
		return fmt.Errorf("VLAN interfaces: %w", families.ErrNotSupported)
	case err != nil:
		return fmt.Errorf("ip link add: %w: %s", err, out)
	}
	return nil
}

// echoUDP sends a datagram from a to an address in b, and has it sent back.
func (n *net2) echoUDP(to string, size int) {
	n.Helper()
	var l net.PacketConn
	var c net.Conn
	var err error
	n.b.Do(func() { l, err = net.ListenPacket("udp4", to) })
	require.NoError(n, err)
	defer l.Close()
	n.a.Do(func() { c, err = net.Dial("udp4", to) })
	require.NoError(n, err)
	defer c.Close()
	_, err = c.Write(make([]byte, size))
	require.NoError(n, err)
	b := make([]byte, 1<<16)
	got, from, err := l.ReadFrom(b)
	require.NoError(n, err)
	require.Equal(n, size, got)
	_, err = l.WriteTo(b[:got], from)
	require.NoError(n, err)
	_, err = c.Read(b)
	require.NoError(n, err)
}
