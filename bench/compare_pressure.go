package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Trials of a relay that is short of something: readers, descriptors.

const (
	// A relay may hold this much for one session whose reader is away; a relay
	// without a bound is far beyond it after a second of loopback.
	boundedKiB = 16 << 10
	// Nor do we send more than this: whoever takes it all has no bound.
	blastLimit = 256 << 20
	blastBlock = 64 << 10

	// haproxy starts with no fewer descriptors than 217.
	fewFiles    = 256
	manyClients = 400
	// Above this share of a CPU, a relay that waits for descriptors spins. One that rests
	// takes next to none; one that spins gets no more than its part of a busy machine.
	spinning = 0.2
)

// pressureTrials hold for a time before they look.
func pressureTrials(hold time.Duration) []trial {
	tcp := wish{from: "tcp", to: "tcp"}
	const memory = "one peer that stops reading takes the machine's memory"
	return []trial{
		{name: "client-never-reads", title: "client never reads, backend sends 2 s long: the relay's memory", wish: tcp, means: memory,
			run: func(ctx context.Context, s *stage) (finding, error) { return s.neverReads(ctx, hold, true) }},
		{name: "backend-never-reads", title: "backend never reads, client sends 2 s long: the relay's memory", wish: tcp, means: memory,
			run: func(ctx context.Context, s *stage) (finding, error) { return s.neverReads(ctx, hold, false) }},
		{name: "udp-clients", title: "200 UDP clients ask once and leave: what the relay holds for them 1 s later", wish: wish{from: "udp", to: "udp"},
			means: "descriptors or processes run out under many short clients", run: leftBehind},
		{name: "emfile", title: "256 descriptors, 400 clients, who then leave: is the next one served, and does the wait take CPU time",
			wish: wish{from: "tcp", to: "tcp", files: fewFiles}, best: recovers,
			means: "a burst of clients ends the service, or burns a CPU", run: outOfFiles},
	}
}

// blast sends until it is stopped, and counts.
func blast(c net.Conn, sent *atomic.Int64) {
	block := make([]byte, blastBlock)
	for sent.Load() < blastLimit {
		n, err := c.Write(block)
		sent.Add(int64(n))
		if err != nil {
			return
		}
	}
}

// neverReads lets one side send to another one that does not read.
func (s *stage) neverReads(ctx context.Context, hold time.Duration, fromBackend bool) (finding, error) {
	var sent atomic.Int64
	over := make(chan struct{})
	defer close(over)
	to, err := s.serve(func(c net.Conn) {
		if fromBackend {
			blast(c, &sent)
			return
		}
		<-over
	})
	if err != nil {
		return finding{}, err
	}
	l, err := s.relay(ctx, to)
	if err != nil {
		return finding{}, err
	}
	before := residentKiB(l)
	c, err := s.client(l)
	if err != nil {
		return finding{}, err
	}
	if !fromBackend {
		s.wg.Go(func() { blast(c, &sent) })
	}
	time.Sleep(hold) // what the trial is about
	return judgeMemory(l, residentKiB(l)-before, sent.Load()), nil
}

func judgeMemory(l *laid, grown float64, sent int64) finding {
	word := "bounded"
	if grown > boundedKiB || sent >= blastLimit {
		word = "unbounded"
	}
	detail := fmt.Sprintf("%.1f MiB taken from the sender", float64(sent)/(1<<20))
	if l.relay != nil {
		detail = fmt.Sprintf("%+.0f KiB, ", grown) + detail
	}
	return finding{word: word, detail: detail}
}

// residentKiB is VmRSS of a relay's processes; 0 where there is none. One that ends
// meanwhile counts nothing.
func residentKiB(l *laid) (sum float64) {
	if l.relay == nil {
		return 0
	}
	all, err := processes()
	if err != nil {
		return 0
	}
	for _, p := range family(l.relay.pid(), all) {
		kib, err := fieldKiB(fmt.Sprintf("/proc/%d/status", p.pid), "VmRSS")
		if err == nil {
			sum += kib
		}
	}
	return sum
}

// udpVisitors is how many clients leftBehind sends; half of that many of anything is
// no chance.
const udpVisitors = 200

// leftBehind lets clients come and go.
func leftBehind(ctx context.Context, s *stage) (finding, error) {
	to, err := s.packets("127.0.0.1", echoPackets)
	if err != nil {
		return finding{}, err
	}
	l, err := s.relay(ctx, to)
	if err != nil {
		return finding{}, err
	}
	procs, fds := counts(l)
	for range udpVisitors {
		if wrong, err := s.echoed(l, 64); err != nil || wrong != "" {
			return finding{word: wrong}, err
		}
	}
	time.Sleep(time.Second) // the time that the trial gives
	procsNow, fdsNow := counts(l)
	return judgeLeft(procsNow-procs, fdsNow-fds), nil
}

func judgeLeft(procs, fds int) finding {
	word := "nothing"
	switch {
	case procs >= udpVisitors/2:
		word = "a process each"
	case fds >= udpVisitors/2:
		word = "a descriptor each"
	}
	return finding{word: word, detail: fmt.Sprintf("%+d processes, %+d descriptors", procs, fds)}
}

// counts is how many processes and descriptors a relay has; none if there is no relay.
func counts(l *laid) (procs, fds int) {
	if l.relay == nil {
		return 0, 0
	}
	all, err := processes()
	if err != nil {
		return 0, 0
	}
	for _, p := range family(l.relay.pid(), all) {
		open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.pid))
		if err == nil { // else it has ended meanwhile
			procs, fds = procs+1, fds+len(open)
		}
	}
	return procs, fds
}

const recovers = "served, at rest"

// outOfFiles sends more clients than a relay has descriptors for.
func outOfFiles(ctx context.Context, s *stage) (finding, error) {
	to, err := s.serve(echoStream)
	if err != nil {
		return finding{}, err
	}
	l, err := s.relay(ctx, to)
	if err != nil {
		return finding{}, err
	}
	busy, served, err := s.crowded(l)
	if err != nil {
		return finding{}, err
	}
	word := "served"
	if !s.servedAgain(l) {
		word = "never served again"
	}
	if busy > spinning {
		word += ", spins"
	} else {
		word += ", at rest"
	}
	return finding{word: word, detail: fmt.Sprintf("%d of %d served at once, %.0f %% of a CPU", served, manyClients, 100*busy)}, nil
}

// crowded brings the clients, and returns what share of a CPU the relay took while
// they waited, and how many were served at once. When it returns they have left.
func (s *stage) crowded(l *laid) (busy float64, served int64, err error) {
	var answered atomic.Int64
	var clients sync.WaitGroup
	leave := make(chan struct{})
	for range manyClients {
		clients.Go(func() { s.staying(l, &answered, leave) })
	}
	defer clients.Wait()
	defer close(leave)

	time.Sleep(time.Second) // those who can be served are
	const watch = time.Second
	start, err := cpuOf(l.relay.pid())
	if err != nil {
		return 0, 0, err
	}
	time.Sleep(watch)
	end, err := cpuOf(l.relay.pid())
	return (end - start) / watch.Seconds(), answered.Load(), err
}

// staying is a client that asks once and stays until all leave.
func (s *stage) staying(l *laid, answered *atomic.Int64, leave <-chan struct{}) {
	c, err := s.clientWithin(l, time.Second)
	if err != nil {
		return // the relay's queue is full: it is one of those who wait
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if exchangeByte(c) == nil {
			answered.Add(1)
		}
	}()
	<-leave
	_ = c.Close() // ends the exchange, if it still waits
	<-done
}

// servedAgain tells whether a new client is served some time after the others left.
func (s *stage) servedAgain(l *laid) bool {
	for end := time.Now().Add(connTimeout / 2); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		c, err := s.clientWithin(l, time.Second)
		if err != nil {
			continue
		}
		_ = c.SetDeadline(time.Now().Add(time.Second))
		err = exchangeByte(c)
		_ = c.Close() // its answer is what counts
		if err == nil {
			return true
		}
	}
	return false
}
