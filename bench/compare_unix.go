package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Trials of what only unix sockets have: borders, and descriptors.

// messageSizes are sent in this order; an empty message is one, too.
var messageSizes = []int{1, 0, 300, 60000}

func unixTrials() []trial {
	gram := wish{from: "unixgram", to: "unixgram"}
	answered := gram
	answered.answers = true
	return []trial{
		{name: "seqpacket", title: "SEQPACKET messages of 1, 0, 300 and 60000 B", wish: wish{from: "unixpacket", to: "unixpacket"},
			means: "messages run together, are cut, or an empty one ends the connection", run: seqpacket},
		{name: "unixgram", title: "unix datagrams of 1, 0, 300 and 60000 B", wish: gram,
			means: "as above", run: unixDatagrams},
		{name: "unixgram-answer", title: "unix datagrams, and the answers to their sender", wish: answered,
			means: "the sender waits for ever", run: unixAnswers},
		{name: "unix-unread", title: "unix stream: backend answers 1000 B and closes without reading the request: what the client sees",
			wish: wish{from: "unix", to: "unix"}, means: "the client thinks that its request was read", run: unixUnread},
		{name: "rights", title: "a descriptor sent over a unix stream (SCM_RIGHTS)", wish: wish{from: "unix", to: "unix", rights: true},
			means: "programs that pass descriptors (tmux, Wayland, D-Bus) fail, often much later", run: passRights},
	}
}

// sizesSeen prints sizes as the trials compare them.
func sizesSeen(sizes []int) string {
	return strings.Trim(fmt.Sprint(sizes), "[]") + " B"
}

func seqpacket(ctx context.Context, s *stage) (finding, error) {
	seen := make(chan []int, 1)
	to, err := s.serve(func(c net.Conn) { tell(seen, readMessages(c)) })
	if err != nil {
		return finding{}, err
	}
	c, err := s.through(ctx, to)
	if err != nil {
		return finding{}, err
	}
	for _, size := range messageSizes {
		if _, err := c.Write(make([]byte, size)); err != nil {
			return finding{word: fmt.Sprintf("client: %s", ending(err))}, nil
		}
	}
	if err := c.Close(); err != nil {
		return finding{}, err
	}
	sizes, err := first(ctx, seen, "the backend")
	return finding{word: sizesSeen(sizes)}, err
}

// readMessages returns the sizes of a seqpacket connection's messages. An empty one
// reads like the end, but only the end stays: two in a row are the end.
func readMessages(c net.Conn) (sizes []int) {
	p := make([]byte, 1<<16)
	for {
		n, err := c.Read(p)
		if err != nil && !errors.Is(err, io.EOF) {
			return sizes
		}
		if last := len(sizes) - 1; n == 0 && last >= 0 && sizes[last] == 0 {
			return sizes[:last]
		}
		sizes = append(sizes, n)
	}
}

func unixDatagrams(ctx context.Context, s *stage) (finding, error) {
	seen := make(chan []int, 1)
	to, err := s.packets("", func(c net.PacketConn) { tell(seen, readDatagrams(c)) })
	if err != nil {
		return finding{}, err
	}
	c, err := s.through(ctx, to)
	if err != nil {
		return finding{}, err
	}
	for _, size := range messageSizes {
		if _, err := c.Write(make([]byte, size)); err != nil {
			return finding{word: fmt.Sprintf("client: %s", ending(err))}, nil
		}
	}
	sizes, err := first(ctx, seen, "the backend")
	return finding{word: sizesSeen(sizes)}, err
}

// readDatagrams returns the sizes of as many datagrams as are sent, or of those that
// come in time.
func readDatagrams(c net.PacketConn) (sizes []int) {
	p := make([]byte, 1<<16)
	if c.SetReadDeadline(time.Now().Add(connTimeout/2)) != nil {
		return nil
	}
	for len(sizes) < len(messageSizes) {
		n, _, err := c.ReadFrom(p)
		if err != nil {
			return sizes
		}
		sizes = append(sizes, n)
	}
	return sizes
}

// unixUnread: who closes a unix stream with something unread in it resets it.
func unixUnread(ctx context.Context, s *stage) (finding, error) {
	to, err := s.serve(func(c net.Conn) {
		_, _ = io.ReadFull(c, make([]byte, 1)) // the rest is there, too: it was one write
		_, _ = c.Write(make([]byte, lastWords))
	})
	if err != nil {
		return finding{}, err
	}
	return s.lastHeard(ctx, to)
}

func unixAnswers(ctx context.Context, s *stage) (finding, error) {
	to, err := s.packets("", echoPackets)
	if err != nil {
		return finding{}, err
	}
	l, err := s.relay(ctx, to)
	if err != nil {
		return finding{}, err
	}
	name := func(path string) *net.UnixAddr { return &net.UnixAddr{Net: "unixgram", Name: path} }
	c, err := net.DialUnix("unixgram", name(filepath.Join(s.dir, "client.sock")), name(l.at.Addr))
	if err != nil {
		return finding{}, err
	}
	defer c.Close()
	if _, err := c.Write([]byte("who?")); err != nil {
		return finding{}, err
	}
	wrong, err := judgeEcho(c, []byte("who?"))
	if wrong == "" {
		wrong = "answered"
	}
	return finding{word: wrong}, err
}

const inFile = "what the descriptor leads to"

func passRights(ctx context.Context, s *stage) (finding, error) {
	seen := make(chan string, 1)
	to, err := s.serve(func(c net.Conn) { tell(seen, takeRights(c)) })
	if err != nil {
		return finding{}, err
	}
	c, err := s.through(ctx, to)
	if err != nil {
		return finding{}, err
	}
	file := filepath.Join(s.dir, "file")
	if err := os.WriteFile(file, []byte(inFile), 0o600); err != nil {
		return finding{}, err
	}
	f, err := os.Open(file)
	if err != nil {
		return finding{}, err
	}
	defer f.Close() // ours; the copy that travels is the kernel's
	if err := sendRights(c.(*net.UnixConn), f); err != nil {
		return finding{}, err
	}
	word, err := first(ctx, seen, "the backend")
	return finding{word: word}, err
}

func sendRights(c *net.UnixConn, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Control(func(fd uintptr) {
		_, _, sent = c.WriteMsgUnix([]byte("."), syscall.UnixRights(int(fd)), nil)
	})
	return errors.Join(err, sent)
}

// takeRights says what became of a descriptor that should come with the first byte.
func takeRights(c net.Conn) string {
	p, oob := make([]byte, 16), make([]byte, syscall.CmsgSpace(4))
	n, oobn, _, _, err := c.(*net.UnixConn).ReadMsgUnix(p, oob)
	if err != nil {
		return ending(err)
	}
	f, err := fileIn(oob[:oobn])
	if err != nil {
		return fmt.Sprintf("%d B without it", n)
	}
	defer f.Close() // read only
	text, err := io.ReadAll(f)
	if err != nil || string(text) != inFile {
		return "another one"
	}
	return "arrives"
}

// fileIn is the descriptor of a control message; the caller closes it.
func fileIn(oob []byte) (*os.File, error) {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil || len(messages) == 0 {
		return nil, errors.Join(err, errors.New("no control message"))
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil || len(fds) == 0 {
		return nil, errors.Join(err, errors.New("no descriptor"))
	}
	return os.NewFile(uintptr(fds[0]), "passed"), nil
}
