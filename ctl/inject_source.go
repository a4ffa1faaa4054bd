package ctl

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/sockd/sockd/families/packet/inject/wire"
	"github.com/sockd/sockd/families/packet/pcapng"
)

// frameSource is where the frames of an injection come from: one frame, or a file.
type frameSource struct {
	one  *wire.Record // then there is no file
	file *frameFile
	name string // of the file
}

// frameFile is a file of packets.
type frameFile struct {
	closer io.Closer
	input  *flushedInput
	reader pcapng.BlockReader
	first  *pcapng.Block // the first packet, until it is taken
	link   pcapng.LinkType
	begun  int64 // when the first packet was captured

	cut     int64 // packets that are shorter in the file than they were
	strange int64 // packets of another link type, left out
}

// flushedInput calls flush before each read, which may have to wait: what was read
// before has gone by then.
type flushedInput struct {
	io.Reader
	flush func() error
}

func (i *flushedInput) Read(p []byte) (int, error) {
	if i.flush != nil {
		if err := i.flush(); err != nil {
			return 0, err
		}
	}
	return i.Reader.Read(p)
}

// open opens what the flags and DATA name. ctx ends reads.
func (f *injectFlags) open(ctx context.Context, e *Env, data []string) (*frameSource, error) {
	if f.file != "" {
		return openFrameFile(ctx, e, f.file)
	}
	var frame []byte
	if len(data) > 0 {
		frame = []byte(data[0])
	} else {
		var err error
		if frame, err = io.ReadAll(io.LimitReader(interruptible{ctx, e.Stdin}, 3*wire.MaxFrame+1)); err != nil {
			return nil, fmt.Errorf("inject: read stdin: %w", err)
		}
	}
	if f.hex {
		var err error
		if frame, err = hexDigits("inject", frame); err != nil {
			return nil, err
		}
	}
	return &frameSource{one: &wire.Record{Frame: frame}}, nil
}

// hexDigits decodes hex digits with white space anywhere.
func hexDigits(verb string, text []byte) ([]byte, error) {
	digits := bytes.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return -1
		}
		return r
	}, text)
	out := make([]byte, hex.DecodedLen(len(digits)))
	if _, err := hex.Decode(out, digits); err != nil {
		return nil, &UsageError{Verb: verb, Why: "--hex: " + strings.TrimPrefix(err.Error(), "encoding/hex: "), Hint: "two digits a byte: 68656c6c6f"}
	}
	return out, nil
}

// openFrameFile opens a file and reads as far as its first packet, which tells the link
// type.
func openFrameFile(ctx context.Context, e *Env, name string) (*frameSource, error) {
	var r io.Reader = e.Stdin
	var closer io.Closer = io.NopCloser(nil)
	if name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("inject: %w", err)
		}
		r, closer = file, file
	}
	f := &frameFile{closer: closer, input: &flushedInput{Reader: interruptible{ctx, r}}}
	s := &frameSource{file: f, name: name}
	if err := f.start(); err != nil {
		_ = closer.Close() // it was only read
		return nil, s.fail(err)
	}
	return s, nil
}

func (s *frameSource) fail(err error) error { return readError("inject", s.name, err) }

// start finds the first packet. A file without any has no link type.
func (f *frameFile) start() error {
	var err error
	switch f.reader, err = pcapng.Open(f.input); {
	case errors.Is(err, io.EOF):
		return fmt.Errorf("it is empty: %w", pcapng.ErrFormat)
	case err != nil:
		return err
	}
	var b pcapng.Block
	switch err := f.packet(&b); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return err
	}
	f.first = &b
	f.link, f.begun = f.linkOf(&b), b.Packet.Time
	return nil
}

// packet reads as far as the next packet.
func (f *frameFile) packet(b *pcapng.Block) error {
	for {
		if err := f.reader.Next(b); err != nil || b.Type == pcapng.PacketBlock {
			return err
		}
	}
}

func (f *frameFile) linkOf(b *pcapng.Block) pcapng.LinkType {
	return f.reader.Interfaces()[b.Packet.Interface].Link
}

// link is what the frames begin with, nil when nothing tells.
func (s *frameSource) link() *int64 {
	if s.file == nil || s.file.first == nil {
		return nil
	}
	n := int64(s.file.link)
	return &n
}

// each calls f for every frame. It is called once. flush is called before a read that
// may have to wait.
func (s *frameSource) each(flush func() error, f func(wire.Record) error) error {
	switch {
	case s.one != nil:
		return f(*s.one)
	case s.file.first == nil:
		return nil
	}
	s.file.input.flush = flush
	var err error
	for b := s.file.first; err == nil; {
		if err := s.file.frame(b, f); err != nil {
			return err
		}
		err = s.file.packet(b)
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return s.fail(err)
}

func (f *frameFile) frame(b *pcapng.Block, use func(wire.Record) error) error {
	p := &b.Packet
	if f.linkOf(b) != f.link {
		f.strange++
		return nil
	}
	if p.Len > len(p.Data) {
		f.cut++
	}
	return use(wire.Record{At: time.Duration(p.Time - f.begun), Frame: p.Data})
}

// Close closes the file.
func (s *frameSource) Close() error {
	if s.file == nil {
		return nil
	}
	return s.file.closer.Close()
}
