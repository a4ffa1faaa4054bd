package main

import (
	"bytes"
	"encoding/json"
	"testing"
	"unicode/utf8"

	"github.com/sockd/sockd/ctl"
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/stretchr/testify/require"
)

// Frames are bytes that strangers sent: whatever they are, printing them ends
// without a panic, and nothing in a line steers the terminal.
func FuzzAnyFrameIsPrinted(f *testing.F) {
	for i, s := range append(scenes(), newScenes()...) {
		for _, frame := range s.frames {
			f.Add(frame, uint8(i), len(frame))
			f.Add(frame[:len(frame)/2], uint8(i), len(frame))
		}
	}
	f.Add([]byte{}, uint8(0), 0)
	links := []pcapng.LinkType{pcapng.Ethernet, pcapng.LinuxSLL2, pcapng.Raw, linkSLL, 9999}
	f.Fuzz(func(t *testing.T, frame []byte, how uint8, full int) {
		o := &ctl.PacketOptions{
			Ethernet: how&1 != 0, Quiet: how&2 != 0, Verbose: int(how>>2) & 3,
			HexASCII: how&16 != 0, ASCII: how&32 != 0, HexLink: how&64 != 0, Times: int(how >> 5),
		}
		var line bytes.Buffer
		p := newPacketPrinter(&line, o)
		i := &pcapng.Interface{Link: links[int(how)%len(links)], Name: "eth0"}
		packet := &pcapng.Packet{Time: at0.UnixNano(), Data: frame, Len: full}
		require.NoError(t, p.Print(i, packet))
		require.NoError(t, p.Print(i, packet), "twice: now the conversation is known")
		d := p.Decode(i, packet)
		require.True(t, utf8.ValidString(d.Src+d.Dst))
		_, err := json.Marshal(d.Layers)
		require.NoError(t, err)
		for _, c := range line.Bytes() {
			require.True(t, c == '\n' || c == '\t' || c >= 0x20 && c < 0x7f, "byte %#x in %q", c, line.String())
		}
	})
}

func TestAddressesAreThoseOfTheFrame(t *testing.T) {
	p := newPacketPrinter(nil, &ctl.PacketOptions{})
	for name, tt := range map[string]struct {
		frame    []byte
		src, dst string
	}{
		"UDP":            {udpFrame(1000, 2000, "x"), "10.0.0.1:1000", "10.0.0.2:2000"},
		"TCP, tagged":    {tagged(5), "10.0.0.1:1", "10.0.0.2:2"},
		"ping":           {icmp4(8, 0, 1, 1, false, data("x")), "10.0.0.1", "10.0.0.2"},
		"ARP":            {arpFrame(1, macB), "10.0.0.1", "10.0.0.2"},
		"IPv6":           {icmp6(128, 0, data("12345678")), "2001:db8::1", "fe80::2"},
		"later fragment": {fragment(185, true), "10.0.0.1", "10.0.0.2"},
		"too short":      {[]byte{1, 2, 3}, "", ""},
	} {
		d := p.Decode(&pcapng.Interface{Link: pcapng.Ethernet}, &pcapng.Packet{Data: tt.frame, Len: len(tt.frame)})
		require.Equal(t, tt.src, d.Src, name)
		require.Equal(t, tt.dst, d.Dst, name)
	}
}
