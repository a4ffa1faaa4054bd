package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"time"
)

const (
	// After so long without any reply, what is in flight counts as lost.
	lossTimeout = 100 * time.Millisecond
	// Every client must have had one reply within this time.
	warmTimeout = 5 * time.Second
	// So many sessions are begun at once: a peer that starts a process for each
	// client is not to be drowned.
	warmWindow = 16
)

// echoDatagrams sends every datagram back to where it came from, forever.
func echoDatagrams(fd int) error {
	runtime.LockOSThread()
	b := newBatch()
	for {
		n, err := b.recv(fd, false)
		if err != nil {
			return os.NewSyscallError("recvmmsg", err)
		}
		b.back(n)
		if err := b.send(fd, n); err != nil {
			return os.NewSyscallError("sendmmsg", err)
		}
	}
}

// A crowd is any number of UDP clients on one socket: each has an address of its own
// in 127.1.0.0/16, set datagram by datagram with IP_PKTINFO. To the relay they are
// different clients; to the generator they cost the same as one.
type crowd struct {
	fd      int
	to      syscall.RawSockaddrInet4
	size    int
	clients int
	next    int // whose turn it is
	out, in *batch
	seen    []bool // who had a reply
	unseen  int
}

// clientAddr is the address of client i.
func clientAddr(i int) [4]byte { return [4]byte{127, 1, byte(i/250) + 1, byte(i%250) + 1} }

func newCrowd(j job) (*crowd, error) {
	if j.Size < 4 || j.Size > datagramRoom || j.Clients < 1 || j.Clients > 50_000 {
		return nil, fmt.Errorf("%d clients with %d bytes each: out of range", j.Clients, j.Size)
	}
	fd, _, err := bindUDP(endpoint{"udp", "0.0.0.0:0"})
	if err != nil {
		return nil, err
	}
	to, err := rawAddr(j.To)
	if err != nil {
		return nil, err
	}
	tv := syscall.NsecToTimeval(int64(lossTimeout))
	err = errors.Join(
		syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &tv),
		syscall.SetsockoptInt(fd, syscall.IPPROTO_IP, syscall.IP_PKTINFO, 1),
	)
	return &crowd{
		fd: fd, to: to, size: j.Size, clients: j.Clients, out: newBatch(), in: newBatch(),
		seen: make([]bool, j.Clients), unseen: j.Clients,
	}, err
}

func prepareDatagrams(j job) (func() (outcome, error), error) {
	c, err := newCrowd(j)
	if err != nil {
		return nil, err
	}
	if err := c.warm(); err != nil {
		return nil, err
	}
	return func() (outcome, error) { return c.run(j.For, j.Window) }, nil
}

// warm gives every client one reply.
func (c *crowd) warm() error {
	for end := time.Now().Add(warmTimeout); c.unseen > 0; {
		if time.Now().After(end) {
			return fmt.Errorf("%d of %d clients had no reply within %v", c.unseen, c.clients, warmTimeout)
		}
		n, err := c.sendUnseen()
		if err != nil {
			return err
		}
		for n > 0 {
			got, err := c.recv()
			if errors.Is(err, syscall.EAGAIN) {
				break
			}
			if err != nil {
				return err
			}
			n -= got
		}
	}
	return nil
}

// sendUnseen sends one datagram for each of the next few clients without a reply.
// (That nobody listens yet is no error on a socket that is not connected.)
func (c *crowd) sendUnseen() (int, error) {
	n := 0
	for i := 0; i < c.clients && n < warmWindow; i++ {
		if !c.seen[i] {
			c.write(n, i)
			n++
		}
	}
	return n, os.NewSyscallError("sendmmsg", c.out.send(c.fd, n))
}

// write makes message i of the next batch one of a client's.
func (c *crowd) write(i, client int) {
	binary.BigEndian.PutUint32(c.out.bufs[i], uint32(client))
	c.out.aim(i, c.size, c.to, clientAddr(client))
}

// send sends n datagrams, each of the client whose turn it is.
func (c *crowd) send(n int) error {
	for i := range n {
		c.write(i, c.next)
		c.next++
		if c.next == c.clients {
			c.next = 0
		}
	}
	return os.NewSyscallError("sendmmsg", c.out.send(c.fd, n))
}

// recv takes what has come, and checks that each reply is whole and reached the
// client that it belongs to.
func (c *crowd) recv() (int, error) {
	n, err := c.in.recv(c.fd, true)
	if err != nil {
		return 0, err
	}
	for i := range n {
		client := int(binary.BigEndian.Uint32(c.in.bufs[i]))
		switch got := c.in.msgs[i].len; {
		case int(got) != c.size:
			return n, fmt.Errorf("a reply has %d bytes instead of %d", got, c.size)
		case client >= c.clients || c.in.infos[i].info.Addr != clientAddr(client):
			return n, fmt.Errorf("client %d's reply went to %v", client, c.in.infos[i].info.Addr)
		case !c.seen[client]:
			c.seen[client] = true
			c.unseen--
		}
	}
	return n, nil
}

// run keeps window datagrams in flight for a while.
func (c *crowd) run(d time.Duration, window int) (outcome, error) {
	o := outcome{Start: now()}
	until := o.Start + int64(d)
	inFlight := 0
	for o.End = o.Start; o.End < until; o.End = now() {
		for inFlight < window {
			n := min(window-inFlight, batchSize)
			if err := c.send(n); err != nil {
				return o, err
			}
			inFlight += n
		}
		n, err := c.recv()
		if errors.Is(err, syscall.EAGAIN) {
			o.Lost += int64(inFlight)
			inFlight = 0
			continue
		}
		if err != nil {
			return o, err
		}
		o.Ops += int64(n)
		inFlight = max(inFlight-n, 0) // late ones were counted as lost
	}
	lost, err := c.drain(inFlight)
	o.Lost += lost
	return o, err
}

// drain takes the replies that are still on their way and says how many never came.
func (c *crowd) drain(inFlight int) (lost int64, err error) {
	for inFlight > 0 {
		n, err := c.recv()
		if errors.Is(err, syscall.EAGAIN) {
			return int64(inFlight), nil
		}
		if err != nil {
			return 0, err
		}
		inFlight -= n
	}
	return 0, nil
}
