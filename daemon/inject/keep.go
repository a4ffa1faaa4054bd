package inject

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"syscall"
)

const (
	// keepMost is how much one injection keeps to repeat it: minutes of ordinary
	// traffic, or 800,000 of the shortest frames. Who has more can send it pass by pass.
	keepMost = 64 << 20
	// keepAll is what all injections of a daemon keep together.
	keepAll = 256 << 20
	// keepChunk is taken at a time, and holds the largest piece.
	keepChunk = 1 << 20
)

// Memory is what the injections of one daemon may keep together.
type Memory struct {
	used atomic.Int64
	most int64
}

// NewMemory is a Memory of 256 MiB.
func NewMemory() *Memory { return &Memory{most: keepAll} }

func (m *Memory) take(n int64) error {
	if m.used.Add(n) > m.most {
		m.used.Add(-n)
		return fmt.Errorf("keep frames to repeat them: all injections together keep at most %d MiB: %w", m.most>>20, syscall.ENOMEM)
	}
	return nil
}

func (m *Memory) give(n int64) { m.used.Add(-n) }

// store is the frames of an injection that repeats them, as they came.
type store struct {
	memory *Memory
	most   int
	chunks [][]byte
}

// fill keeps all that f has.
func (s *store) fill(ctx context.Context, f *feed) error {
	for {
		p, err := f.next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.add(p); err != nil {
			return err
		}
		f.giveBack(p)
	}
}

func (s *store) add(piece []byte) error {
	last := len(s.chunks) - 1
	if last < 0 || cap(s.chunks[last])-len(s.chunks[last]) < len(piece) {
		if (len(s.chunks)+1)*keepChunk > s.most {
			return fmt.Errorf("keep frames to repeat them: they are more than %d MiB: %w", s.most>>20, syscall.EFBIG)
		}
		if err := s.memory.take(keepChunk); err != nil {
			return err
		}
		s.chunks = append(s.chunks, make([]byte, 0, keepChunk))
		last++
	}
	s.chunks[last] = append(s.chunks[last], piece...)
	return nil
}

func (s *store) free() {
	s.memory.give(int64(len(s.chunks)) * keepChunk)
	s.chunks = nil
}
