package prove

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// The load "churn" begins sessions at an even pace: a request, an answer, the end. It
// tells apart what the law allows, and what it does not.

const (
	requestLen = 1024
	// mostAtOnce is how many sessions are under way at most: more than come while sockd
	// is away, and fewer than can be parked where net.core.wmem_max is what it is.
	mostAtOnce = 1000
)

// churnResult counts sessions.
type churnResult struct {
	Begun, Done int64
	// Refused could not connect.
	Refused int64
	// Edge were reset before their backend saw a byte of them: what may become of a
	// connection that is killed between accept and the first park.
	Edge int64
	// Lost ended otherwise than in order, and their backend had seen them.
	Lost    int64
	Slowest time.Duration
	// Errors says of those that were lost, and of what backends saw, how many had which.
	Errors map[string]int
}

type churn struct {
	order
	result   churnResult // under mu, but for what is atomic
	mu       sync.Mutex
	seen     sync.Map // numbers that a backend saw
	number   atomic.Uint64
	underWay atomic.Int64
	work     sync.WaitGroup
}

func runChurn(o order, c *console) error {
	s := &churn{order: o}
	stop, err := backends(o.Ways, s.serve)
	if err != nil {
		return err
	}
	defer stop()
	stopped, paced := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(paced)
		s.pace(stopped)
	}()
	for c.next() == "begun" {
		if err := c.answer(s.number.Load()); err != nil {
			return err
		}
	}
	close(stopped)
	<-paced
	s.work.Wait()
	return c.answer(s.result)
}

// pace begins sessions until it is stopped.
func (s *churn) pace(stopped <-chan struct{}) {
	tick := time.NewTicker(time.Second / time.Duration(s.Rate))
	defer tick.Stop()
	for {
		select {
		case <-stopped:
			return
		case <-tick.C:
			if s.underWay.Load() >= mostAtOnce {
				continue
			}
			s.underWay.Add(1)
			n := s.number.Add(1)
			s.work.Go(func() {
				defer s.underWay.Add(-1)
				s.count(n, s.session(n))
			})
		}
	}
}

// serve answers one request with itself.
func (s *churn) serve(_ int, c streamConn) {
	defer c.Close()
	request := make([]byte, requestLen)
	n, err := io.ReadFull(c, request)
	if n >= 8 {
		s.seen.Store(binary.BigEndian.Uint64(request), true)
	}
	if err != nil {
		s.complain(fmt.Sprintf("backend after %d bytes", n), err)
		return
	}
	_, _ = c.Write(request) // the client tells when it did not come
	_, _ = io.Copy(io.Discard, struct{ io.Reader }{c})
}

var (
	errRefused = errors.New("refused")
	errWrong   = errors.New("the answer is not the request")
)

func (s *churn) session(n uint64) error {
	begun := time.Now()
	c, err := dial(s.Ways[int(n)%len(s.Ways)].From)
	if err != nil {
		return errors.Join(errRefused, err)
	}
	defer c.Close()
	request := bytes.Repeat(binary.BigEndian.AppendUint64(nil, n), requestLen/8)
	if err := c.SetDeadline(begun.Add(patience)); err != nil {
		return err
	}
	if _, err := c.Write(request); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil && !errors.Is(err, syscall.ENOTCONN) { // a reset came meanwhile: read tells
		return err
	}
	answer, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	if !bytes.Equal(answer, request) {
		return errWrong
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.result.Slowest = max(s.result.Slowest, time.Since(begun))
	return nil
}

// count enters what became of a session.
func (s *churn) count(n uint64, err error) {
	_, seen := s.seen.Load(n)
	s.seen.Delete(n)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.result.Begun++
	switch {
	case err == nil:
		s.result.Done++
	case errors.Is(err, errRefused):
		s.result.Refused++
		s.complainLocked("refused", err)
	case !seen && (isReset(err) || errors.Is(err, errWrong)):
		s.result.Edge++
	default:
		s.result.Lost++
		s.complainLocked(map[bool]string{true: "seen", false: "unseen"}[seen], err)
	}
}

func (s *churn) complain(who string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.complainLocked(who, err)
}

// complainLocked counts an error by its innermost text, which has no addresses.
func (s *churn) complainLocked(who string, err error) {
	if s.result.Errors == nil {
		s.result.Errors = map[string]int{}
	}
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(err) {
		err = inner
	}
	s.result.Errors[who+": "+err.Error()]++
}
