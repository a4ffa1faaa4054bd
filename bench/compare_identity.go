package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// Trials of who the client is: told to the backend, and asked of the kernel.

func identityTrials() []trial {
	out := func(version string) wish { return wish{from: "tcp", to: "tcp", send: version} }
	in := wish{from: "tcp", to: "tcp", accept: true, send: "v1"}
	const unknown = "the backend logs, limits and blocks the relay instead of the client"
	return []trial{
		{name: "proxy-v1", title: "PROXY protocol v1 sent: the client's address", wish: out("v1"), best: itsAddress, means: unknown, run: proxySent},
		{name: "proxy-v2", title: "PROXY protocol v2 sent: the client's address", wish: out("v2"), best: itsAddress, means: unknown, run: proxySent},
		{name: "proxy-from-v1", title: "PROXY protocol v1 accepted, and passed on as v1; a client without a header is refused", wish: in, best: itsAlone,
			means: "behind a load balancer the client is forgotten", run: proxyAccepted(headerV1)},
		{name: "proxy-from-v2", title: "PROXY protocol v2 accepted, and passed on as v1; a client without a header is refused", wish: in, best: itsAlone,
			means: "as above", run: proxyAccepted(headerV2)},
		{name: "uid-unix", title: "one user may come in, another one not: unix", wish: wish{from: "unix", to: "unix", uid: "0"}, best: byUser,
			means: "permissions of a path are all there is", run: allowUser},
		{name: "uid-tcp", title: "one user may come in, another one not: TCP on loopback", wish: wish{from: "tcp", to: "tcp", uid: "0"}, best: byUser,
			means: "whoever has a shell on the machine may use the service", run: allowUser},
	}
}

const (
	itsAddress = "the client's"
	itsAlone   = "the client's alone"
	byUser     = "served, refused"
)

func proxySent(ctx context.Context, s *stage) (finding, error) {
	l, seen, err := s.headers(ctx)
	if err != nil {
		return finding{}, err
	}
	c, err := s.client(l)
	if err != nil {
		return finding{}, err
	}
	if _, err := c.Write([]byte(request)); err != nil {
		return finding{}, err
	}
	return judgeHeader(ctx, seen, s.trial.wish.send+" "+c.LocalAddr().String())
}

// headers is a relay, and a backend that tells which PROXY headers it reads. Whoever
// says nothing is nobody to it.
func (s *stage) headers(ctx context.Context) (*laid, <-chan string, error) {
	seen := make(chan string, 1)
	to, err := s.serve(func(c net.Conn) {
		header, err := readProxy(bufio.NewReader(c))
		switch {
		case err == nil:
			tell(seen, header)
		case !errors.Is(err, io.EOF):
			tell(seen, err.Error())
		}
	})
	if err != nil {
		return nil, nil, err
	}
	l, err := s.relay(ctx, to)
	return l, seen, err
}

func judgeHeader(ctx context.Context, seen <-chan string, want string) (finding, error) {
	got, err := first(ctx, seen, "the backend")
	if got == want {
		got = itsAddress
	}
	return finding{word: got}, err
}

// far is a client that is elsewhere (RFC 5737), and what it spoke to: only a header
// can name them.
var far, farServer = netip.MustParseAddrPort("192.0.2.7:4242"), netip.MustParseAddrPort("192.0.2.1:80")

// proxyAccepted sends a header, and then comes without one: a relay that lets that in
// would let anybody pass for somebody else.
func proxyAccepted(header func(src, dst netip.AddrPort) []byte) performance {
	return func(ctx context.Context, s *stage) (finding, error) {
		l, seen, err := s.headers(ctx)
		if err != nil {
			return finding{}, err
		}
		if err := s.say(l, append(header(far, farServer), request...)); err != nil {
			return finding{}, err
		}
		f, err := judgeHeader(ctx, seen, s.trial.wish.send+" "+far.String())
		if err != nil || f.word != itsAddress {
			return f, err
		}
		if err := s.say(l, []byte("GET / HTTP/1.1\r\n\r\n")); err != nil {
			return finding{}, err
		}
		select {
		case <-seen:
			return finding{word: itsAddress + ", or none"}, nil
		default:
			return finding{word: itsAlone}, nil
		}
	}
}

// say connects, sends, and waits until it is hung up on.
func (s *stage) say(l *laid, p []byte) error {
	c, err := s.client(l)
	if err != nil {
		return err
	}
	if _, err := c.Write(p); err != nil {
		return err
	}
	_, _ = readOut(c) // how does not matter
	return nil
}

// proxySignature begins a header of version 2 (haproxy's proxy-protocol.txt, 2.2).
const proxySignature = "\r\n\r\n\x00\r\nQUIT\n"

var errNoHeader = errors.New("no header")

func headerV1(src, dst netip.AddrPort) []byte {
	return fmt.Appendf(nil, "PROXY TCP4 %s %s %d %d\r\n", src.Addr(), dst.Addr(), src.Port(), dst.Port())
}

// headerV2 is command PROXY, TCP over IPv4.
func headerV2(src, dst netip.AddrPort) []byte {
	b := append([]byte(proxySignature), 0x21, 0x11, 0, 12)
	b = append(b, src.Addr().AsSlice()...)
	b = append(b, dst.Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, src.Port())
	return binary.BigEndian.AppendUint16(b, dst.Port())
}

// readProxy reads a header and returns its version and the client's address; io.EOF:
// nobody said anything.
func readProxy(r *bufio.Reader) (string, error) {
	start, err := r.Peek(6)
	switch {
	case err != nil && len(start) == 0:
		return "", io.EOF
	case err != nil:
		return "", errNoHeader
	case string(start) == "PROXY ":
		return readV1(r)
	case bytes.HasPrefix([]byte(proxySignature), start):
		return readV2(r)
	}
	return "", errNoHeader
}

func readV1(r *bufio.Reader) (string, error) {
	text, err := r.ReadString('\n')
	f := strings.Fields(text)
	if err != nil || len(f) != 6 || f[1] != "TCP4" {
		return "", fmt.Errorf("header %q", text)
	}
	return "v1 " + net.JoinHostPort(f[2], f[4]), nil
}

// readV2: 12 bytes of signature, command, family, length; then addresses and ports.
func readV2(r *bufio.Reader) (string, error) {
	var b [28]byte
	if _, err := io.ReadFull(r, b[:]); err != nil || b[12] != 0x21 || b[13] != 0x11 {
		return "", fmt.Errorf("header % x", b)
	}
	addr, _ := netip.AddrFromSlice(b[16:20]) // four bytes always are one
	return "v2 " + netip.AddrPortFrom(addr, binary.BigEndian.Uint16(b[24:26])).String(), nil
}

// allowUser lays one relay for this user and one for another one, and comes to both.
func allowUser(ctx context.Context, s *stage) (finding, error) {
	to, err := s.serve(func(c net.Conn) { _, _ = io.Copy(c, c) })
	if err != nil {
		return finding{}, err
	}
	var words []string
	for _, uid := range []int{os.Geteuid(), os.Geteuid() + 1} {
		w := s.trial.wish
		w.uid = strconv.Itoa(uid)
		word, err := s.served(ctx, w, to)
		if err != nil {
			return finding{}, err
		}
		words = append(words, word)
	}
	return finding{word: strings.Join(words, ", ")}, nil
}

func (s *stage) served(ctx context.Context, w wish, to endpoint) (string, error) {
	l, err := s.relayWith(ctx, w, to)
	if err != nil {
		return "", err
	}
	if s.asks(l) != nil {
		return "refused", nil
	}
	return "served", nil
}

// asks connects, has a byte echoed and leaves.
func (s *stage) asks(l *laid) error {
	c, err := s.client(l)
	if err != nil {
		return err
	}
	defer c.Close()
	return exchangeByte(c)
}

func exchangeByte(c net.Conn) error {
	if _, err := c.Write([]byte("?")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}
