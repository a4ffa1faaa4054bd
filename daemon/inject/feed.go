package inject

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/inject/wire"
)

const (
	// pieceRoom holds the longest record, and many short ones: a pipe gives 64 KiB at a
	// time, or up to 1 MiB where its owner has made it larger.
	pieceRoom = 512 << 10
	// feedPieces are read, sent, and one between, so that neither side waits for the
	// other's every step.
	feedPieces = 3
)

// feed reads a caller's frames ahead of who sends them.
type feed struct {
	r      model.FrameReader
	pieces chan []byte // whole records; closed at the end
	free   chan []byte
	cancel context.CancelFunc
	err    error // why it ended, when pieces is closed; nil: well
}

// newFeed starts the reader, which close ends and waits for.
func newFeed(ctx context.Context, r model.FrameReader) *feed {
	f := &feed{r: r, pieces: make(chan []byte), free: make(chan []byte, feedPieces)}
	for range feedPieces {
		f.free <- nil // made when it is needed
	}
	ctx, f.cancel = context.WithCancel(ctx)
	go f.run(ctx)
	return f
}

// next is the next piece, until it is given back. The end is io.EOF.
func (f *feed) next(ctx context.Context) ([]byte, error) {
	select {
	case p, ok := <-f.pieces:
		switch {
		case ok:
			return p, nil
		case f.err != nil:
			return nil, f.err
		}
		return nil, io.EOF
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (f *feed) giveBack(piece []byte) { f.free <- piece[:0] }

// close ends the reading and waits for it.
func (f *feed) close() {
	f.cancel()
	_ = f.r.SetReadDeadline(time.Unix(1, 0)) // fails when it is closed, and then nobody reads
	for range f.pieces {
	}
}

func (f *feed) run(ctx context.Context) {
	defer close(f.pieces)
	var rest []byte // of the piece before: a record's beginning
	for {
		room := f.room(ctx)
		if room == nil {
			return
		}
		n := copy(room, rest) // only this goroutine writes to pieces, so rest is as it was
		whole, n, err := f.fill(room, n)
		if whole > 0 && !f.hand(ctx, room[:whole]) {
			return
		}
		if err != nil {
			f.err = ended(err, n-whole)
			return
		}
		rest = room[whole:n]
	}
}

// room is a free piece at its full length, or nil when ctx has ended.
func (f *feed) room(ctx context.Context) []byte {
	select {
	case p := <-f.free:
		if p == nil {
			p = make([]byte, pieceRoom)
		}
		return p[:pieceRoom]
	case <-ctx.Done():
		return nil
	}
}

// fill reads behind the first n bytes until there is a whole record. It hands over
// what there is then, so that frames that come slowly go at once.
func (f *feed) fill(room []byte, n int) (whole, filled int, err error) {
	for {
		m, err := f.r.Read(room[n:])
		n += m
		whole, _, bad := wire.Whole(room[:n])
		if bad != nil {
			return whole, n, bad
		}
		if whole > 0 || err != nil {
			return whole, n, err
		}
	}
}

func (f *feed) hand(ctx context.Context, piece []byte) bool {
	select {
	case f.pieces <- piece:
		return true
	case <-ctx.Done():
		return false
	}
}

// ended is why no more can be read, with rest bytes of a record left over.
func ended(err error, rest int) error {
	switch {
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("read frames: %w", err)
	case rest > 0:
		return fmt.Errorf("read frames: they end within one: %w", io.ErrUnexpectedEOF)
	}
	return nil
}
