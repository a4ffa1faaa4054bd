package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

// Trials of UDP.

// answerWithin is how long a client waits for a datagram, on loopback.
const answerWithin = 500 * time.Millisecond

// udpSizes: empty, least, what an Ethernet carries, a jumbo frame, and all that IPv4
// can.
var udpSizes = []int{0, 1, 1472, 9000, 65507}

func datagramTrials() []trial {
	udp := wish{from: "udp", to: "udp"}
	wildcard := udp
	wildcard.wildcard = true
	return []trial{
		{name: "udp-sizes", title: "UDP datagrams of 0, 1, 1472, 9000 and 65507 B, echoed", wish: udp,
			means: "datagrams are cut or swallowed, and nobody is told", run: udpEchoes},
		{name: "udp-refused", title: "UDP to a port where nobody is: what a connected client gets", wish: udp,
			means: "a client waits for its timeout instead of trying the next server at once", run: udpRefused},
		{name: "udp-source", title: "UDP, listening on every address, a client speaks to 127.0.0.2: where the answer comes from", wish: wildcard,
			means: "a client drops the answer, since it comes from somebody else", run: udpSource},
	}
}

// echoPackets answers every datagram with itself.
func echoPackets(c net.PacketConn) {
	p := make([]byte, 1<<16)
	for {
		n, from, err := c.ReadFrom(p)
		if err != nil {
			return
		}
		if from != nil && from.String() != "" { // a unix socket without a name has none
			_, _ = c.WriteTo(p[:n], from)
		}
	}
}

func udpEchoes(ctx context.Context, s *stage) (finding, error) {
	to, err := s.packets("127.0.0.1", echoPackets)
	if err != nil {
		return finding{}, err
	}
	l, err := s.relay(ctx, to)
	if err != nil {
		return finding{}, err
	}
	var wrong []string
	for _, size := range udpSizes {
		word, err := s.echoed(l, size)
		if err != nil {
			return finding{}, err
		}
		if word != "" {
			wrong = append(wrong, word)
		}
	}
	if len(wrong) == 0 {
		return finding{word: "whole"}, nil
	}
	return finding{word: strings.Join(wrong, ", ")}, nil
}

// echoed sends a datagram from a client of its own and says what is wrong with the
// answer.
func (s *stage) echoed(l *laid, size int) (wrong string, err error) {
	c, err := s.client(l)
	if err != nil {
		return "", err
	}
	defer c.Close()
	sent := bytes.Repeat([]byte{'x'}, size)
	if _, err := c.Write(sent); err != nil {
		return "", err
	}
	return judgeEcho(c, sent)
}

func judgeEcho(c net.Conn, sent []byte) (wrong string, err error) {
	if err := c.SetReadDeadline(time.Now().Add(answerWithin)); err != nil {
		return "", err
	}
	p := make([]byte, 1<<16)
	n, err := c.Read(p)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Sprintf("%d B lost", len(sent)), nil
	case err != nil:
		return fmt.Sprintf("%d B: %s", len(sent), ending(err)), nil
	case n != len(sent):
		return fmt.Sprintf("%d B cut to %d", len(sent), n), nil
	case !bytes.Equal(p[:n], sent):
		return fmt.Sprintf("%d B garbled", len(sent)), nil
	}
	return "", nil
}

func udpRefused(ctx context.Context, s *stage) (finding, error) {
	gone, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		return finding{}, err
	}
	to := endpoint{"udp", gone.LocalAddr().String()}
	if err := gone.Close(); err != nil {
		return finding{}, err
	}
	c, err := s.through(ctx, to)
	if err != nil {
		return finding{}, err
	}
	return finding{word: untilRefused(c)}, nil
}

// untilRefused sends some datagrams, since a relay may learn of the refusal of the
// first one only with the second one.
func untilRefused(c net.Conn) string {
	for range 3 {
		n := 0
		_, err := c.Write([]byte("anybody?"))
		if err == nil {
			_ = c.SetReadDeadline(time.Now().Add(answerWithin))
			n, err = c.Read(make([]byte, 16))
		}
		if err == nil {
			return fmt.Sprintf("a datagram of %d B", n)
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return ending(err)
		}
	}
	return "nothing"
}

func udpSource(ctx context.Context, s *stage) (finding, error) {
	const host = "127.0.0.2"
	to, err := s.packets(host, echoPackets)
	if err != nil {
		return finding{}, err
	}
	l, err := s.relay(ctx, to)
	if err != nil {
		return finding{}, err
	}
	_, port, err := net.SplitHostPort(l.at.Addr)
	if err != nil {
		return finding{}, err
	}
	spoken, err := net.ResolveUDPAddr("udp4", net.JoinHostPort(host, port))
	if err != nil {
		return finding{}, err
	}
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		return finding{}, err
	}
	defer c.Close()
	return answeredFrom(c, spoken)
}

func answeredFrom(c net.PacketConn, spoken *net.UDPAddr) (finding, error) {
	err := errors.Join(c.SetDeadline(time.Now().Add(3*answerWithin)), func() error {
		_, err := c.WriteTo([]byte("who?"), spoken)
		return err
	}())
	if err != nil {
		return finding{}, err
	}
	_, from, err := c.ReadFrom(make([]byte, 16))
	if err != nil {
		return finding{word: ending(err)}, nil
	}
	got := from.(*net.UDPAddr)
	if got.Port != spoken.Port {
		return finding{word: fmt.Sprintf("%s, another port", got.IP)}, nil
	}
	return finding{word: got.IP.String()}, nil
}
