package prove

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// The load "streams" sends bytes both ways over one connection a way, until it is told
// to stop, and then ends one direction after the other. Each side has a checksum of
// what it sent and of what it received.

const (
	streamChunk = 16 << 10
	// gapLeast is from when on a time without bytes is noted: below it the machine's own
	// scheduling is all that is seen.
	gapLeast = 10 * time.Millisecond
	// endStep is the time between the ends of two directions.
	endStep = 60 * time.Millisecond
)

// direction is one direction of one way.
type direction struct {
	Way             string
	Sent, Got       int64
	SentSum, GotSum string
	SendErr, GotErr string
	// Gaps are the times without a byte for a reader, as nanoseconds since 1970.
	Gaps [][2]int64
}

type streams struct {
	order
	stopped chan struct{}
	// stoppedAt is set before stopped is closed.
	stoppedAt time.Time
	ended     sync.WaitGroup
	moved     atomic.Int64
	dirs      []*direction // two a way: up and down
}

func runStreams(o order, c *console) error {
	s := &streams{order: o, stopped: make(chan struct{})}
	for _, w := range o.Ways {
		s.dirs = append(s.dirs, &direction{Way: w.Name + " up"}, &direction{Way: w.Name + " down"})
	}
	s.ended.Add(4 * len(o.Ways)) // each direction is sent and received
	stop, err := backends(o.Ways, func(i int, c streamConn) { s.both(i, 1, c) })
	if err != nil {
		return err
	}
	defer stop()
	for i, w := range o.Ways {
		conn, err := dial(w.From)
		if err != nil {
			return err
		}
		go s.both(i, 0, conn)
	}
	for {
		switch c.next() {
		case "moved":
			err = c.answer(s.moved.Load())
		case "stop":
			s.stoppedAt = time.Now()
			close(s.stopped)
			s.ended.Wait()
			err = c.answer(s.dirs)
		}
		if err != nil {
			return err
		}
	}
}

// both runs one side of way i: side 0 is the client.
func (s *streams) both(i, side int, c streamConn) {
	defer c.Close()
	sends, gets := s.dirs[2*i+side], s.dirs[2*i+1-side]
	var work sync.WaitGroup
	work.Go(func() { s.send(sends, 2*i+side, c) })
	s.receive(gets, c)
	work.Wait()
}

// send sends at an even pace until its turn to end has come.
func (s *streams) send(d *direction, number int, c streamConn) {
	defer s.ended.Done()
	seed := [32]byte{byte(number)}
	block := make([]byte, streamChunk)
	_, _ = rand.NewChaCha8(seed).Read(block) // it cannot fail
	sum, begun := sha256.New(), time.Now()
	for d.Sent < s.Bytes || !s.isTurn(number) {
		binary.LittleEndian.PutUint64(block, uint64(d.Sent)) // no two blocks are alike
		n, err := c.Write(block)
		sum.Write(block[:n])
		d.Sent += int64(n)
		if err != nil {
			d.SendErr = err.Error()
			break
		}
		due := time.Duration(float64(s.Over) * float64(d.Sent) / float64(max(s.Bytes, 1)))
		time.Sleep(due - time.Since(begun))
	}
	if err := c.CloseWrite(); err != nil && d.SendErr == "" {
		d.SendErr = err.Error()
	}
	d.SentSum = hex.EncodeToString(sum.Sum(nil))
}

// isTurn tells whether a direction is to end: one after the other, once stop was said.
func (s *streams) isTurn(number int) bool {
	select {
	case <-s.stopped:
		return time.Since(s.stoppedAt) >= time.Duration(number)*endStep
	default:
		return false
	}
}

func (s *streams) receive(d *direction, c streamConn) {
	defer s.ended.Done()
	sum, buf := sha256.New(), make([]byte, streamChunk)
	for last := time.Now(); ; {
		n, err := c.Read(buf)
		now := time.Now()
		if now.Sub(last) >= gapLeast && d.Got > 0 {
			d.Gaps = append(d.Gaps, [2]int64{last.UnixNano(), now.UnixNano()})
		}
		last = now
		s.note(d, sum, buf[:n])
		if err != nil {
			d.GotErr = textOf(err)
			break
		}
	}
	d.GotSum = hex.EncodeToString(sum.Sum(nil))
}

func (s *streams) note(d *direction, sum hash.Hash, b []byte) {
	sum.Write(b)
	d.Got += int64(len(b))
	s.moved.Add(int64(len(b)))
}

// lost says what is wrong with a direction, or nothing.
func (d *direction) lost() string {
	switch {
	case d.SendErr != "" || d.GotErr != "":
		return fmt.Sprintf("%s: %s%s", d.Way, d.SendErr, d.GotErr)
	case d.Sent != d.Got:
		return fmt.Sprintf("%s: %d bytes sent, %d received", d.Way, d.Sent, d.Got)
	case d.SentSum != d.GotSum:
		return fmt.Sprintf("%s: sha256 %s sent, %s received", d.Way, d.SentSum, d.GotSum)
	}
	return ""
}

// stalls are the times without a byte after each kill that was not followed by another
// one meanwhile; whole is the longest time without a byte, however many kills it had.
func (d *direction) stalls(kills []int64) (after []time.Duration, whole time.Duration) {
	const slack = int64(30 * time.Millisecond) // what was in the queues still came
	gap := 0
	for i, at := range kills {
		for gap < len(d.Gaps) && d.Gaps[gap][1] <= at {
			gap++
		}
		switch {
		case gap == len(d.Gaps) || d.Gaps[gap][0] > at+slack:
			after = append(after, 0)
		case i+1 == len(kills) || kills[i+1] >= d.Gaps[gap][1]:
			after = append(after, time.Duration(d.Gaps[gap][1]-max(d.Gaps[gap][0], at)))
			whole = max(whole, time.Duration(d.Gaps[gap][1]-d.Gaps[gap][0]))
		}
	}
	return after, whole
}
