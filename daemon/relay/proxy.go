package relay

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"sync"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/ksock"
)

// The PROXY protocol puts one header in front of a connection's bytes, or of each
// datagram, which says who the client was (HAProxy, doc/proxy-protocol.txt):
//
//	v1  PROXY TCP4 192.0.2.1 192.0.2.2 50000 443 CR LF
//	v2  signature 12 | version 4, command 4 | family 4, transport 4 | length 16 | addresses | TLVs
//
// The codec is our own: the library for it reads through a bufio.Reader, which takes
// bytes that are the session's, gives up on a v1 header that comes in pieces, and
// reads an abstract unix name as none.
const (
	proxySignature1 = "PROXY "
	proxySignature2 = "\r\n\r\n\x00\r\nQUIT\n"

	// maxProxy1 is what the longest v1 line takes.
	maxProxy1 = 107
	// proxyFixed is the part of a v2 header that all have.
	proxyFixed = 16
	// maxProxyRest bounds what a v2 header says that follows. The protocol has room
	// for 64 KiB; what is sent is addresses and names, and at most a certificate.
	maxProxyRest = 4096
)

// proxyFamily is what a header's addresses are: the family nibble of v2.
type proxyFamily uint8

const (
	proxyNone  proxyFamily = iota // none are told: the connection's own count
	proxyInet4                    // both are IPv4
	proxyInet6                    // both are IPv6; one may be IPv4 mapped into it
	proxyUnix
)

// size is how many bytes a v2 header's addresses take.
func (f proxyFamily) size() int {
	return [...]int{0, 2 * 4, 2 * 16, 2 * families.MaxUnixPath}[f] + f.ports()
}

func (f proxyFamily) ports() int {
	if f == proxyInet4 || f == proxyInet6 {
		return 4
	}
	return 0
}

// proxyTransport is what the client spoke: the transport nibble of v2. It need not be
// what carries the header.
type proxyTransport uint8

const (
	proxyUnspec proxyTransport = iota
	proxyStream
	proxyDgram
)

// proxyHeader is what a PROXY header says. Equal headers are ==.
type proxyHeader struct {
	version uint8 // 1 or 2
	// local: the connection is the proxy's own, such as a health check (LOCAL). It
	// says nothing else.
	local     bool
	family    proxyFamily
	transport proxyTransport // proxyUnspec exactly where family is proxyNone
	// src is the client and dst whom it called, without zones: inet only.
	src, dst netip.AddrPort
	// srcName and dstName are the same for unix: a path, "@" and an abstract name
	// without the NULs at its end, or nothing for the unnamed. Both in plain form.
	srcName, dstName string
	// creds are the client's, where hasCreds (v2 only). They are as true as the
	// sender is trusted.
	creds    families.Creds
	hasCreds bool
}

// proxyBetween is the header of a client at src that called dst, on a socket of type
// t: a stream, or a datagram for all others. Addresses that are nil, or that the
// protocol has no form for, are not told.
func proxyBetween(version uint8, t families.Type, src, dst families.Addr) proxyHeader {
	h := proxyHeader{version: version, transport: proxyDgram}
	if t == families.Stream {
		h.transport = proxyStream
	}
	from, to := scopeOf(src), scopeOf(dst)
	switch {
	case from.Prefix.IsValid() && to.Prefix.IsValid():
		h.between(netip.AddrPortFrom(from.Prefix.Addr(), from.Port), netip.AddrPortFrom(to.Prefix.Addr(), to.Port))
	case from.Path != "" || to.Path != "":
		h.family, h.srcName, h.dstName = proxyUnix, from.Path, to.Path
	default:
		h.transport = proxyUnspec
	}
	return h
}

func scopeOf(a families.Addr) families.Scope {
	if a == nil {
		return families.Scope{}
	}
	return a.Scope()
}

// between sets inet addresses: IPv4 when both are, or are mapped; else both as IPv6.
func (h *proxyHeader) between(src, dst netip.AddrPort) {
	a, b := src.Addr().WithZone("").Unmap(), dst.Addr().WithZone("").Unmap()
	h.family = proxyInet4
	if !a.Is4() || !b.Is4() {
		h.family = proxyInet6
		a, b = netip.AddrFrom16(a.As16()), netip.AddrFrom16(b.As16())
	}
	h.src, h.dst = netip.AddrPortFrom(a, src.Port()), netip.AddrPortFrom(b, dst.Port())
}

// withCreds adds who the client is. A client without any name is still one of unix.
func (h proxyHeader) withCreds(c families.Creds) proxyHeader {
	h.creds, h.hasCreds = c, true
	if h.family == proxyNone {
		h.family, h.transport = proxyUnix, proxyStream
	}
	return h
}

// source is the client's inet address, IPv4 not mapped. It is false where the header
// tells none.
func (h proxyHeader) source() (netip.AddrPort, bool) {
	return netip.AddrPortFrom(h.src.Addr().Unmap(), h.src.Port()), h.src.IsValid()
}

// text is the client's address as lists show it, in escaped form, or "" where the
// connection's own address counts.
func (h proxyHeader) text() string {
	switch h.family {
	case proxyInet4, proxyInet6:
		src, _ := h.source()
		return h.word("tcp", "udp") + ":" + src.String()
	case proxyUnix:
		return h.word("unix", "unixgram") + ":" + families.Escape(h.srcName)
	}
	return ""
}

func (h proxyHeader) word(stream, dgram string) string {
	if h.transport == proxyDgram {
		return dgram
	}
	return stream
}

// appendProxy appends h as it goes over the wire. v1 knows TCP only: anything else is
// UNKNOWN there. It allocates nothing but b.
func appendProxy(b []byte, h proxyHeader) []byte {
	if h.version == 1 {
		return appendProxy1(b, h)
	}
	b = append(b, proxySignature2...)
	if h.local || h.family == proxyNone {
		return append(b, 2<<4|h.command(), 0, 0, 0)
	}
	b = append(b, 2<<4|h.command(), byte(h.family)<<4|byte(h.transport))
	length := h.family.size()
	if h.hasCreds {
		length += tlvHeader + credsSize
	}
	b = binary.BigEndian.AppendUint16(b, uint16(length))
	return appendCreds(appendProxyAddrs(b, h), h)
}

// The commands of v2.
const (
	commandLocal = 0
	commandProxy = 1
)

func (h proxyHeader) command() byte {
	if h.local {
		return commandLocal
	}
	return commandProxy
}

func appendProxy1(b []byte, h proxyHeader) []byte {
	b = append(b, proxySignature1...)
	switch {
	case h.local || h.transport != proxyStream || h.family.ports() == 0:
		return append(b, "UNKNOWN\r\n"...)
	case h.family == proxyInet4:
		b = append(b, "TCP4 "...)
	default:
		b = append(b, "TCP6 "...)
	}
	b = append(h.src.Addr().AppendTo(b), ' ')
	b = append(h.dst.Addr().AppendTo(b), ' ')
	b = append(strconv.AppendUint(b, uint64(h.src.Port()), 10), ' ')
	b = strconv.AppendUint(b, uint64(h.dst.Port()), 10)
	return append(b, "\r\n"...)
}

func appendProxyAddrs(b []byte, h proxyHeader) []byte {
	switch h.family {
	case proxyInet4:
		src, dst := h.src.Addr().As4(), h.dst.Addr().As4()
		b = append(append(b, src[:]...), dst[:]...)
	case proxyInet6:
		src, dst := h.src.Addr().As16(), h.dst.Addr().As16()
		b = append(append(b, src[:]...), dst[:]...)
	default:
		return appendUnixName(appendUnixName(b, h.srcName), h.dstName)
	}
	b = binary.BigEndian.AppendUint16(b, h.src.Port())
	return binary.BigEndian.AppendUint16(b, h.dst.Port())
}

// appendUnixName is a name as sun_path has it: an abstract one begins with NUL.
func appendUnixName(b []byte, name string) []byte {
	var path [families.MaxUnixPath]byte
	if copy(path[:], name); path[0] == '@' {
		path[0] = 0
	}
	return append(b, path[:]...)
}

// proxyError is a header that is none, and why.
type proxyError struct{ why string }

func (e *proxyError) Error() string { return "no PROXY header: " + e.why }

func notProxy(format string, a ...any) error { return &proxyError{fmt.Sprintf(format, a...)} }

// parseProxy reads the header at b's front, which takes n bytes. With n 0 and no
// error all of b belongs to a header that goes on. What follows the header has no
// influence. The error is a *proxyError; nothing of b is kept.
func parseProxy(b []byte) (h proxyHeader, n int, err error) {
	switch {
	case isFront(b, proxySignature1):
		return parseProxy1(b)
	case isFront(b, proxySignature2):
		return parseProxy2(b)
	}
	return proxyHeader{}, 0, notProxy("it begins with %.16q", b)
}

// isFront tells whether b begins with the signature, or may yet.
func isFront(b []byte, signature string) bool {
	n := min(len(b), len(signature))
	return string(b[:n]) == signature[:n]
}

func parseProxy1(b []byte) (proxyHeader, int, error) {
	line := b[:min(len(b), maxProxy1)]
	cr := bytes.IndexAny(line, "\r\n")
	switch {
	case cr < 0 && len(line) < maxProxy1, cr == len(b)-1 && b[cr] == '\r' && len(b) < maxProxy1:
		return proxyHeader{}, 0, nil
	case cr < 0:
		return proxyHeader{}, 0, notProxy("a line of more than %d bytes", maxProxy1)
	case !bytes.HasPrefix(line[cr:], []byte("\r\n")):
		return proxyHeader{}, 0, notProxy("%q does not end with CR LF", line[:cr])
	}
	h, err := parseProxyLine(string(line[len(proxySignature1):cr]))
	if err != nil {
		return proxyHeader{}, 0, err
	}
	return h, cr + 2, nil
}

// parseProxyLine reads what stands between "PROXY " and the line's end. What follows
// UNKNOWN shall be ignored.
func parseProxyLine(line string) (proxyHeader, error) {
	h := proxyHeader{version: 1}
	words := strings.Split(line, " ")
	switch words[0] {
	case "UNKNOWN":
		return h, nil
	case "TCP4":
		h.family = proxyInet4
	case "TCP6":
		h.family = proxyInet6
	default:
		return proxyHeader{}, notProxy("a connection of %q", words[0])
	}
	if len(words) != 5 {
		return proxyHeader{}, notProxy("%q has %d words and not 5", line, len(words))
	}
	h.transport = proxyStream
	var err error
	if h.src, err = h.family.parse(words[1], words[3]); err != nil {
		return proxyHeader{}, err
	}
	if h.dst, err = h.family.parse(words[2], words[4]); err != nil {
		return proxyHeader{}, err
	}
	return h, nil
}

// parse reads an address and a port of v1, each in its one allowed form.
func (f proxyFamily) parse(host, service string) (netip.AddrPort, error) {
	a, err := netip.ParseAddr(host)
	if err != nil || a.Is4() != (f == proxyInet4) || a.Zone() != "" {
		return netip.AddrPort{}, notProxy("the address %q", host)
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil || service[0] == '0' && service != "0" {
		return netip.AddrPort{}, notProxy("the port %q", service)
	}
	return netip.AddrPortFrom(a, uint16(port)), nil
}

func parseProxy2(b []byte) (proxyHeader, int, error) {
	h := proxyHeader{version: 2}
	if err := h.parseKind(b); err != nil {
		return proxyHeader{}, 0, err
	}
	if len(b) < proxyFixed {
		return proxyHeader{}, 0, nil
	}
	rest := int(binary.BigEndian.Uint16(b[14:]))
	switch {
	case rest > maxProxyRest:
		return proxyHeader{}, 0, notProxy("%d bytes of addresses, and %d are taken", rest, maxProxyRest)
	case rest < h.family.size():
		return proxyHeader{}, 0, notProxy("%d bytes have no room for addresses of %d", rest, h.family.size())
	case len(b) < proxyFixed+rest:
		return proxyHeader{}, 0, nil
	}
	if err := h.parseRest(b[:proxyFixed+rest]); err != nil {
		return proxyHeader{}, 0, err
	}
	return h, proxyFixed + rest, nil
}

// parseKind reads what there is of the bytes behind the signature. Of a LOCAL header
// the family shall be ignored.
func (h *proxyHeader) parseKind(b []byte) error {
	if len(b) <= 12 {
		return nil
	}
	if b[12] != 2<<4|commandLocal && b[12] != 2<<4|commandProxy {
		return notProxy("version and command %#02x", b[12])
	}
	h.local = b[12] == 2<<4|commandLocal
	if len(b) <= 13 || h.local {
		return nil
	}
	switch b[13] {
	case 0x00, 0x11, 0x12, 0x21, 0x22, 0x31, 0x32:
		h.family, h.transport = proxyFamily(b[13]>>4), proxyTransport(b[13]&0xf)
		return nil
	}
	return notProxy("family and transport %#02x", b[13])
}

// parseRest reads the addresses and what follows them in a whole header. Where no
// addresses are told, all of that shall be ignored.
func (h *proxyHeader) parseRest(b []byte) error {
	if h.family == proxyNone {
		return nil
	}
	if err := h.parseAddrs(b[proxyFixed:]); err != nil {
		return err
	}
	return h.parseTLVs(b, proxyFixed+h.family.size())
}

func (h *proxyHeader) parseAddrs(b []byte) (err error) {
	switch h.family {
	case proxyInet4:
		h.src = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b)), binary.BigEndian.Uint16(b[8:]))
		h.dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:])), binary.BigEndian.Uint16(b[10:]))
	case proxyInet6:
		h.src = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b)), binary.BigEndian.Uint16(b[32:]))
		h.dst = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[16:])), binary.BigEndian.Uint16(b[34:]))
	default:
		if h.srcName, err = parseUnixName(b[:families.MaxUnixPath]); err != nil {
			return err
		}
		h.dstName, err = parseUnixName(b[families.MaxUnixPath:][:families.MaxUnixPath])
	}
	return err
}

// parseUnixName reads sun_path. A relative path that begins with "@" would pass for an
// abstract name from here on, so it is refused.
func parseUnixName(b []byte) (string, error) {
	switch b[0] {
	case '@':
		return "", notProxy("the path %q", bytes.TrimRight(b, "\x00"))
	case 0:
		name := bytes.TrimRight(b[1:], "\x00")
		if len(name) == 0 {
			return "", nil
		}
		return "@" + string(name), nil
	}
	path, _, _ := bytes.Cut(b, []byte{0})
	return string(path), nil
}

// What can follow the addresses: a type, a length of two bytes, and so many more.
const (
	tlvHeader = 3
	tlvCRC    = 0x03 // PP2_TYPE_CRC32C
	// tlvCreds is of the range that applications may use as they like: uid, gid and
	// pid, four bytes each, in network order. Of another length it is somebody else's.
	tlvCreds  = 0xE0
	credsSize = 12
)

func appendCreds(b []byte, h proxyHeader) []byte {
	if !h.hasCreds {
		return b
	}
	b = append(b, tlvCreds, 0, credsSize)
	b = binary.BigEndian.AppendUint32(b, h.creds.UID)
	b = binary.BigEndian.AppendUint32(b, h.creds.GID)
	return binary.BigEndian.AppendUint32(b, uint32(h.creds.PID))
}

// parseTLVs reads the TLVs that fill b, a whole header, from at on.
func (h *proxyHeader) parseTLVs(b []byte, at int) error {
	for at < len(b) {
		if len(b)-at < tlvHeader {
			return notProxy("%d bytes behind its last value", len(b)-at)
		}
		value := at + tlvHeader
		end := value + int(binary.BigEndian.Uint16(b[at+1:]))
		if end > len(b) {
			return notProxy("a value of type %#02x ends %d bytes behind it", b[at], end-len(b))
		}
		if err := h.parseTLV(b, b[at], value, end); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// parseTLV reads the value b[from:to] of a whole header b.
func (h *proxyHeader) parseTLV(b []byte, kind byte, from, to int) error {
	switch {
	case kind == tlvCRC:
		return checkCRC(b, from, to)
	case kind != tlvCreds || to-from != credsSize:
		return nil
	case h.hasCreds:
		return notProxy("two clients' credentials")
	}
	v := b[from:]
	h.hasCreds = true
	h.creds = families.Creds{UID: binary.BigEndian.Uint32(v), GID: binary.BigEndian.Uint32(v[4:]), PID: int32(binary.BigEndian.Uint32(v[8:]))}
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checkCRC compares the checksum b[from:to] with that of the whole header, in which
// it stands as zeros.
func checkCRC(b []byte, from, to int) error {
	if to-from != 4 {
		return notProxy("a checksum of %d bytes", to-from)
	}
	sum := crc32.Update(0, castagnoli, b[:from])
	sum = crc32.Update(sum, castagnoli, make([]byte, 4))
	sum = crc32.Update(sum, castagnoli, b[to:])
	if want := binary.BigEndian.Uint32(b[from:]); sum != want {
		return notProxy("its checksum is %#08x and it says %#08x", sum, want)
	}
	return nil
}

// proxyDatagram takes the header off the front of a datagram. The payload is the rest
// of b. v1 is for connections only.
func proxyDatagram(b []byte) (h proxyHeader, payload []byte, err error) {
	h, n, err := parseProxy(b)
	switch {
	case err != nil:
		return proxyHeader{}, nil, err
	case n == 0:
		return proxyHeader{}, nil, notProxy("the datagram of %d bytes ends within it", len(b))
	case h.version != 2:
		return proxyHeader{}, nil, notProxy("a datagram has version 2 and not %d", h.version)
	}
	return h, b[n:], nil
}

// appendProxyDatagram appends the header and the payload behind it. v1 is for
// connections only: the header is v2 whatever h says.
func appendProxyDatagram(b []byte, h proxyHeader, payload []byte) []byte {
	h.version = 2
	return append(appendProxy(b, h), payload...)
}

// acceptProxy receives the header from a stream and not one byte more, within ctx.
// After an error the client is none that should be served: the caller resets it.
func acceptProxy(ctx context.Context, s families.Socket) (proxyHeader, error) {
	var r proxyReader
	for {
		h, err := r.try(s)
		if !isAgain(err) {
			return h, err
		}
		if err := s.Wait(ctx, families.Readable); err != nil {
			return proxyHeader{}, fmt.Errorf("wait for a PROXY header: %w", err)
		}
	}
}

// proxyReader receives one header in as many attempts as it takes. The zero value is
// ready; it is for one goroutine.
type proxyReader struct {
	have []byte // what was received of a header that goes on: less than proxyRoom
}

// proxyRoom is the longest header.
const proxyRoom = proxyFixed + maxProxyRest

// proxyRooms are for the time of one attempt: a client that is slow to say who it is
// costs the bytes that it has sent.
var proxyRooms = sync.Pool{New: func() any { return new([proxyRoom]byte) }}

// try is one attempt, which never blocks: ErrAgain when more must come first.
//
// It looks before it takes. What belongs to a header that goes on is taken, so that
// the socket is readable again only when there is more.
func (r *proxyReader) try(s families.Socket) (proxyHeader, error) {
	room := proxyRooms.Get().(*[proxyRoom]byte)
	defer proxyRooms.Put(room)
	for {
		had := copy(room[:], r.have)
		peeked, err := recvProxy(s, room[had:], families.FlagPeek)
		if err != nil {
			return proxyHeader{}, err
		}
		h, n, err := parseProxy(room[:had+peeked])
		if err != nil {
			return proxyHeader{}, err
		}
		if n > 0 {
			return h, takeProxy(s, room[had:n])
		}
		if err := takeProxy(s, room[had:had+peeked]); err != nil {
			return proxyHeader{}, err
		}
		r.have = append(r.have, room[had:had+peeked]...)
	}
}

// takeProxy receives exactly b, which was peeked at.
func takeProxy(s families.Socket, b []byte) error {
	for len(b) > 0 {
		n, err := recvProxy(s, b, 0)
		switch {
		case isAgain(err):
			return notProxy("somebody else received part of it")
		case err != nil:
			return err
		}
		b = b[n:]
	}
	return nil
}

// recvProxy is one attempt to receive into b and no further, or to peek.
func recvProxy(s families.Socket, b []byte, f families.Flags) (int, error) {
	m := families.Msg{Data: b[:len(b):len(b)], Flags: f}
	err := s.Recv(&m)
	ksock.CloseFiles(m.Files) // a peek makes duplicates, too
	switch {
	case isAgain(err):
		return 0, families.ErrAgain
	case errors.Is(err, io.EOF):
		return 0, fmt.Errorf("the connection ended before its PROXY header did: %w", io.ErrUnexpectedEOF)
	case err != nil:
		return 0, fmt.Errorf("receive a PROXY header: %w", err)
	case len(m.Files) > 0:
		return 0, notProxy("descriptors came with it") // they would be lost
	}
	return len(m.Data), nil
}
