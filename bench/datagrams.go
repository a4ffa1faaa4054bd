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

// echoDatagrams sends every datagram back to where it came from, forever. b says how
// they are taken: one by one, or in bursts on a socket that joins them.
func echoDatagrams(fd int, b *batch) error {
	runtime.LockOSThread()
	for {
		n, err := b.recv(fd)
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
	burst   int // datagrams at a time, of one client
	clients int
	next    int // whose turn it is
	out, in *batch
	seen    []bool // who had a reply
	unseen  int
}

// clientAddr is the address of client i.
func clientAddr(i int) [4]byte { return [4]byte{127, 1, byte(i/250) + 1, byte(i%250) + 1} }

func newCrowd(j job) (*crowd, error) {
	burst := max(j.Burst, 1)
	if j.Size < 4 || j.Size > datagramRoom || j.Clients < 1 || j.Clients > 50_000 || j.Window < burst || burst*j.Size > burstRoom {
		return nil, fmt.Errorf("%d clients with bursts of %d by %d bytes and %d in flight: out of range", j.Clients, burst, j.Size, j.Window)
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
	c := &crowd{fd: fd, to: to, size: j.Size, burst: burst, clients: j.Clients, seen: make([]bool, j.Clients), unseen: j.Clients}
	c.out, c.in = newBatch(), newBatch()
	if burst > 1 {
		c.out, c.in = newBurstBatch(), newBurstBatch()
		err = errors.Join(err, joinDatagrams(fd))
	}
	return c, err
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
			c.write(n, i, 1)
			n++
		}
	}
	return n, os.NewSyscallError("sendmmsg", c.out.send(c.fd, n))
}

// write makes message i of the next batch n datagrams of a client's.
func (c *crowd) write(i, client, n int) {
	for k := range n {
		binary.BigEndian.PutUint32(c.out.bufs[i][k*c.size:], uint32(client))
	}
	c.out.aim(i, c.size, n, c.to, clientAddr(client))
}

// send sends n bursts, each of the client whose turn it is.
func (c *crowd) send(n int) error {
	for i := range n {
		c.write(i, c.next, c.burst)
		c.next++
		if c.next == c.clients {
			c.next = 0
		}
	}
	return os.NewSyscallError("sendmmsg", c.out.send(c.fd, n))
}

// recv takes what has come and says how many replies that is.
func (c *crowd) recv() (replies int, err error) {
	n, err := c.in.recv(c.fd)
	if err != nil {
		return 0, err
	}
	for i := range n {
		k, err := c.check(i)
		replies += k
		if err != nil {
			return replies, err
		}
	}
	return replies, nil
}

// check counts the replies in message i, each of which must be whole and have reached
// the client that it belongs to.
func (c *crowd) check(i int) (replies int, err error) {
	to, segment := c.in.arrival(i)
	length := int(c.in.msgs[i].len)
	if segment != c.size || length%c.size != 0 {
		return 0, fmt.Errorf("replies of %d bytes, %d together, instead of %d each", segment, length, c.size)
	}
	for at := 0; at < length; at += c.size {
		client := int(binary.BigEndian.Uint32(c.in.bufs[i][at:]))
		if client >= c.clients || to != clientAddr(client) {
			return replies, fmt.Errorf("client %d's reply went to %v", client, to)
		}
		c.answered(client)
		replies++
	}
	return replies, nil
}

func (c *crowd) answered(client int) {
	if !c.seen[client] {
		c.seen[client] = true
		c.unseen--
	}
}

// run keeps window datagrams in flight for a while.
func (c *crowd) run(d time.Duration, window int) (outcome, error) {
	o := outcome{Start: now()}
	until := o.Start + int64(d)
	inFlight := 0
	for o.End = o.Start; o.End < until; o.End = now() {
		for inFlight+c.burst <= window {
			n := min((window-inFlight)/c.burst, len(c.out.msgs))
			if err := c.send(n); err != nil {
				return o, err
			}
			inFlight += n * c.burst
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
