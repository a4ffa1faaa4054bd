package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"
)

// A worker prepares a job (connections made, sessions warm) and returns what is to
// be measured, which it runs once.
type worker func(j job) (measured func() (outcome, error), err error)

var workers = map[kind]worker{
	bulk:      prepareBulk,
	exchange:  prepareExchange,
	reconnect: prepareReconnect,
	idle:      prepareIdle,
	datagrams: prepareDatagrams,
	frames:    prepareFrames,
}

// source is the client of every row. It reads a job, prepares it, says "ready",
// waits for a line, runs, prints the outcome and ends when in does; until then what
// it opened stays open. What it opens is closed by its end as a process.
func source(in io.Reader, out io.Writer) error {
	debug.SetGCPercent(400) // little is allocated, and nothing while it matters
	runtime.LockOSThread()
	lines, enc := bufio.NewScanner(in), json.NewEncoder(out)
	if !lines.Scan() {
		return lines.Err()
	}
	var j job
	if err := json.Unmarshal(lines.Bytes(), &j); err != nil {
		return err
	}
	prepare, ok := workers[j.Kind]
	if !ok {
		return fmt.Errorf("no job %q", j.Kind)
	}
	measured, err := prepare(j)
	if err != nil {
		return err
	}
	if err := enc.Encode("ready"); err != nil {
		return err
	}
	if !lines.Scan() {
		return lines.Err()
	}
	o, err := measured()
	if err != nil {
		return err
	}
	if err := enc.Encode(o); err != nil {
		return err
	}
	lines.Scan() // until the bench has seen what it wants
	return lines.Err()
}

func prepareBulk(j job) (func() (outcome, error), error) {
	fd, err := dial(j.To)
	if err != nil {
		return nil, err
	}
	if _, err := write(fd, []byte{discard}); err != nil {
		return nil, err
	}
	chunk := make([]byte, 256<<10)
	for i := range chunk {
		chunk[i] = byte(i)
	}
	return func() (outcome, error) {
		o := outcome{Start: now(), Bytes: 1}
		until := o.Start + int64(j.For)
		for o.Bytes < j.Bytes && now() < until {
			n, err := write(fd, chunk[:min(int64(len(chunk)), j.Bytes-o.Bytes)])
			if err != nil {
				return o, fmt.Errorf("after %d bytes: %w", o.Bytes, err)
			}
			o.Bytes += int64(n)
		}
		return o, syscall.Close(fd)
	}, nil
}

func prepareReconnect(j job) (func() (outcome, error), error) {
	request, answer := requestOf(j.Size), make([]byte, j.Size)
	once := func() error {
		fd, err := dial(j.To)
		if err != nil {
			return err
		}
		return errors.Join(ask(fd, request, answer), syscall.Close(fd))
	}
	if err := once(); err != nil {
		return nil, err
	}
	return func() (outcome, error) {
		lat := newLatencies()
		o := outcome{Start: now()}
		until := o.Start + int64(j.For)
		for t := o.Start; t < until && o.Ops < j.Count; o.Ops++ {
			if err := once(); err != nil {
				return o, fmt.Errorf("after %d connections: %w", o.Ops, err)
			}
			t = lat.since(t)
		}
		o.End = now()
		lat.into(&o)
		return o, nil
	}, nil
}

// since adds the time from start (Unix ns) until now, which it returns.
func (l *latencies) since(start int64) int64 {
	t := now()
	l.add(time.Duration(t - start))
	return t
}

func requestOf(size int) []byte {
	b := make([]byte, size)
	b[0] = echo
	return b
}

// open makes n connections and one exchange on each, so that a relay's far side is
// there too.
func open(j job) ([]int, error) {
	request, answer := requestOf(j.Size), make([]byte, j.Size)
	fds := make([]int, j.Conns)
	for i := range fds {
		var err error
		if fds[i], err = dial(j.To); err == nil {
			err = ask(fds[i], request, answer)
		}
		if err != nil {
			return nil, fmt.Errorf("connection %d of %d: %w", i+1, j.Conns, err)
		}
	}
	return fds, nil
}

func prepareIdle(j job) (func() (outcome, error), error) {
	// One connection first and closed: what a relay sets up once is no session's cost.
	if _, err := prepareReconnect(job{To: j.To, Size: j.Size}); err != nil {
		return nil, err
	}
	return func() (outcome, error) {
		fds, err := open(j)
		return outcome{Ops: int64(len(fds))}, err
	}, nil
}

// A caller is one connection of the exchange.
type caller struct {
	sent int64 // when its request went out, Unix ns
	got  int   // bytes of the answer so far
}

// exchanger keeps one request under way on every connection, from one thread.
type exchanger struct {
	poll    *epoll
	callers map[int]*caller
	request []byte
	buf     []byte
	lat     latencies
	until   int64
	done    int64
}

func prepareExchange(j job) (func() (outcome, error), error) {
	fds, err := open(j)
	if err != nil {
		return nil, err
	}
	poll, err := newEpoll()
	if err != nil {
		return nil, err
	}
	x := &exchanger{poll: poll, callers: map[int]*caller{}, request: requestOf(j.Size), buf: make([]byte, j.Size), lat: newLatencies()}
	for _, fd := range fds {
		if err := errors.Join(syscall.SetNonblock(fd, true), poll.add(fd)); err != nil {
			return nil, err
		}
		x.callers[fd] = &caller{}
	}
	return func() (outcome, error) { return x.run(j.For) }, nil
}

func (x *exchanger) run(d time.Duration) (outcome, error) {
	o := outcome{Start: now()}
	x.until = o.Start + int64(d)
	for fd, c := range x.callers {
		if err := x.send(fd, c, now()); err != nil {
			return o, err
		}
	}
	for o.End = o.Start; o.End < x.until; o.End = now() {
		ready, err := x.poll.wait(answerTimeout)
		if err != nil {
			return o, err
		}
		if len(ready) == 0 {
			return o, fmt.Errorf("no answer for %v after %d", answerTimeout, x.done)
		}
		for _, ev := range ready {
			if err := x.receive(int(ev.Fd)); err != nil {
				return o, fmt.Errorf("after %d answers: %w", x.done, err)
			}
		}
	}
	o.Ops = x.done
	x.lat.into(&o)
	return o, nil
}

func (x *exchanger) send(fd int, c *caller, at int64) error {
	c.sent, c.got = at, 0
	n, err := write(fd, x.request)
	if err == nil && n < len(x.request) {
		err = io.ErrShortWrite
	}
	return err
}

func (x *exchanger) receive(fd int) error {
	c := x.callers[fd]
	n, err := read(fd, x.buf[:len(x.request)-c.got])
	if errors.Is(err, syscall.EAGAIN) {
		return nil
	}
	if err != nil {
		return err
	}
	if c.got += n; c.got < len(x.request) {
		return nil
	}
	t := x.lat.since(c.sent)
	x.done++
	return x.send(fd, c, t)
}
