package relay

import "github.com/sockd/sockd/families/ksock"

const (
	// pipeSize is one piece of a spliced stream. Small pipes cost a third of the speed.
	pipeSize = 1 << 20
	// sparePipes is how many empty pipes a shard keeps: making one takes some
	// microseconds and its pages, and a burst needs one for a moment only.
	sparePipes = 16
)

// pipePool has the empty pipes of a shard. Streams take one when bytes are to flow
// and give it back when none are in it, so an idle session has none.
type pipePool struct {
	spare []*ksock.Pipe
	// plain: pipes are as the kernel makes them, and are made that again.
	plain bool
}

// take is an empty pipe.
func (p *pipePool) take() (*ksock.Pipe, error) {
	if n := len(p.spare); n > 0 {
		pipe := p.spare[n-1]
		p.spare = p.spare[:n-1]
		return pipe, nil
	}
	if p.plain {
		return ksock.NewPlainPipe()
	}
	return ksock.NewPipe(pipeSize)
}

// give takes a pipe back. One with bytes in it is never another session's: it is
// closed, and they are lost.
func (p *pipePool) give(pipe *ksock.Pipe) {
	if pipe.Held > 0 || len(p.spare) == sparePipes || p.plain && !isPlain(pipe) {
		pipe.Close()
		return
	}
	p.spare = append(p.spare, pipe)
}

// isPlain tells whether a pipe has the size of a new one, or gets it.
func isPlain(pipe *ksock.Pipe) bool {
	return pipe.Size == ksock.PlainPipe || pipe.Size > ksock.PlainPipe && pipe.Resize(ksock.PlainPipe) == nil
}

func (p *pipePool) close() {
	for _, pipe := range p.spare {
		pipe.Close()
	}
	p.spare = nil
}
