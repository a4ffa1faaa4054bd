package prove

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// The load "open" holds sessions open. Most exchange a word now and then; of ten, one
// has its way up ended and one its way down, and go on in the other direction alone.
//
//	round   answers when every session has moved a word that was sent after the command
//	end     ends half of them in order and resets the others, where both sides are TCP
//	        (a unix socket has resets only where bytes were left unread)

// shape says what goes on in a session.
type shape uint8

const (
	bothWays  shape = iota
	upEnded         // the client has ended its way: the backend sends alone
	downEnded       // the backend has
)

func shapeOf(i int) shape {
	switch i % 10 {
	case 3:
		return upEnded
	case 7:
		return downEnded
	}
	return bothWays
}

// wordPause is the time between two words of a session.
const wordPause = 50 * time.Millisecond

// held is one session: its two sides, joined by the number that the client sent first.
type held struct {
	number   int
	way      way
	shape    shape
	client   streamConn
	backend  chan streamConn
	words    atomic.Int64 // that have arrived
	slowest  atomic.Int64 // nanoseconds
	mu       sync.Mutex   // guards err
	err      error
	finished chan struct{}
	server   streamConn // once begun
}

type roundResult struct {
	Sessions int
	Lost     []string
	Slowest  time.Duration // from one word to the next
}

type opened struct {
	order
	ctx   context.Context // ends when no more words are to be sent
	stop  context.CancelFunc
	helds []*held
}

func runOpen(o order, c *console) error {
	s := &opened{order: o}
	s.ctx, s.stop = context.WithCancel(context.Background())
	defer s.stop()
	for i := range o.Sessions {
		s.helds = append(s.helds, &held{number: i, way: o.Ways[i%len(o.Ways)], shape: shapeOf(i), backend: make(chan streamConn, 1), finished: make(chan struct{})})
	}
	_, err := backends(o.Ways, func(_ int, b streamConn) { s.introduce(b) })
	if err != nil {
		return err
	}
	for _, h := range s.helds {
		if err := h.begin(s.ctx); err != nil {
			return fmt.Errorf("session %d by %s: %w", h.number, h.way.Name, err)
		}
	}
	for {
		switch c.next() {
		case "round":
			err = c.answer(s.round())
		case "end":
			err = c.answer(s.end())
		}
		if err != nil {
			return err
		}
	}
}

// introduce reads which session a backend's connection is.
func (s *opened) introduce(b streamConn) {
	var number [4]byte
	if _, err := io.ReadFull(b, number[:]); err != nil {
		_ = b.Close()
		return
	}
	s.helds[binary.BigEndian.Uint32(number[:])].backend <- b
}

// begin connects a session and starts what goes on in it.
func (h *held) begin(ctx context.Context) error {
	c, err := dial(h.way.From)
	if err != nil {
		return err
	}
	h.client = c
	if _, err := c.Write(binary.BigEndian.AppendUint32(nil, uint32(h.number))); err != nil {
		return err
	}
	select {
	case h.server = <-h.backend:
	case <-time.After(patience):
		return errors.New("the backend saw nothing of it")
	}
	go h.live(ctx)
	return nil
}

// live moves words until ctx ends.
func (h *held) live(ctx context.Context) {
	defer close(h.finished)
	sides := [][2]streamConn{{h.client, h.server}, {h.server, h.client}}
	var err error
	switch h.shape {
	case upEnded:
		sides, err = sides[1:], h.client.CloseWrite()
	case downEnded:
		sides, err = sides[:1], h.server.CloseWrite()
	}
	for word, last := uint64(0), time.Now(); err == nil && ctx.Err() == nil; word++ {
		for _, s := range sides {
			if err = pass(s[0], s[1], word); err != nil {
				break
			}
		}
		h.words.Add(1)
		h.slowest.Store(max(h.slowest.Load(), int64(time.Since(last))))
		last = time.Now()
		select {
		case <-ctx.Done():
		case <-time.After(wordPause):
		}
	}
	h.fail(err)
}

// pass has one word go from a to b.
func pass(a, b streamConn, word uint64) error {
	var m, got [8]byte
	binary.BigEndian.PutUint64(m[:], word)
	if _, err := a.Write(m[:]); err != nil {
		return err
	}
	if err := b.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := io.ReadFull(b, got[:]); err != nil {
		return err
	}
	if got != m {
		return fmt.Errorf("word %d came as %d", word, binary.BigEndian.Uint64(got[:]))
	}
	return nil
}

func (h *held) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err == nil {
		h.err = err
	}
}

func (h *held) failure() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.err
}

// round waits until all have moved two words: the second was sent after the command.
func (s *opened) round() roundResult {
	out := roundResult{Sessions: len(s.helds)}
	before := make([]int64, len(s.helds))
	for i, h := range s.helds {
		before[i] = h.words.Load()
	}
	deadline := time.Now().Add(patience)
	for i, h := range s.helds {
		for h.failure() == nil && h.words.Load() < before[i]+2 && time.Now().Before(deadline) {
			time.Sleep(time.Millisecond)
		}
		if err := h.failure(); err != nil || h.words.Load() < before[i]+2 {
			out.Lost = append(out.Lost, h.says(err))
		}
		out.Slowest = max(out.Slowest, time.Duration(h.slowest.Swap(0)))
	}
	return out
}

func (h *held) says(err error) string {
	return fmt.Sprintf("session %d by %s: %v after %d words", h.number, h.way.Name, err, h.words.Load())
}

// end ends all sessions, and says which did not end as they should.
func (s *opened) end() roundResult {
	s.stop()
	out := roundResult{Sessions: len(s.helds)}
	var mu sync.Mutex
	var work sync.WaitGroup
	for _, h := range s.helds {
		work.Go(func() {
			<-h.finished
			err := h.failure()
			if err == nil {
				err = h.part()
			}
			if err != nil {
				mu.Lock()
				defer mu.Unlock()
				out.Lost = append(out.Lost, h.says(err))
			}
		})
	}
	work.Wait()
	return out
}

// part ends a session, and looks how the other side sees it.
func (h *held) part() error {
	defer h.client.Close()
	defer h.server.Close()
	client, ok := h.client.(*net.TCPConn)
	_, both := h.server.(*net.TCPConn)
	if ok && both && h.number%2 == 0 {
		return h.reset(client)
	}
	for _, side := range [][2]streamConn{{h.client, h.server}, {h.server, h.client}} {
		if err := side[0].CloseWrite(); err != nil && !errors.Is(err, syscall.ENOTCONN) { // it may have been ended before
			return err
		}
		if err := ends(side[1]); err != nil {
			return fmt.Errorf("an end came as: %w", err)
		}
	}
	return nil
}

// reset resets the client's side.
func (h *held) reset(client *net.TCPConn) error {
	if err := errors.Join(client.SetLinger(0), client.Close()); err != nil {
		return err
	}
	err := ends(h.server)
	switch {
	case h.shape == upEnded && err == nil: // it has seen the end before; its next word meets the reset
		return nil
	case err == nil:
		return errors.New("a reset came as an end")
	case isReset(err):
		return nil
	}
	return err
}

// ends reads to the end of what a side is sent.
func ends(c streamConn) error {
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, struct{ io.Reader }{c})
	if err == nil && n > 0 {
		return fmt.Errorf("%d bytes too many", n)
	}
	return err
}
