package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"syscall"
	"time"
	"unsafe"
)

// frames is the kind of a job that sends Ethernet frames into an interface.
const frames kind = "frames"

// A frameJob is what of it other jobs do not have.
type frameJob struct {
	Iface string `json:"iface"`
	First int64  `json:"first,omitempty"` // the number that the first frame carries
	Rate  int64  `json:"rate,omitempty"`  // frames a second; 0: as fast as they go
	CPU   int    `json:"cpu"`             // the processor to stay on
}

// A frame is IPv4 and UDP, to another host's address, so that the receiving kernel
// lets go of it at once and what its taps cost is seen. Filters tell frames apart by
// port and source, which repeat every framePorts and frameHosts frames:
//
//	0  Ethernet  14  IPv4  34  UDP  42  number, 8 bytes, big-endian  50  padding
const (
	frameNumberAt = 42
	frameLeast    = frameNumberAt + 8
	framePorts    = 16 // source ports 40000 to 40015
	frameHosts    = 4  // sources 10.99.1.0 to 10.99.1.3
	frameBatch    = 64 // frames in one system call, a multiple of both
)

// newFrame is the frame with a number, size bytes long without its checksum.
func newFrame(size int, number int64) []byte {
	f := make([]byte, size)
	copy(f, "\x02\x53\x6b\x64\x00\x02\x02\x53\x6b\x64\x00\x01\x08\x00")
	ip := f[14:34]
	ip[0], ip[8], ip[9] = 0x45, 64, syscall.IPPROTO_UDP
	binary.BigEndian.PutUint16(ip[2:], uint16(size-14))
	copy(ip[12:], []byte{10, 99, 1, byte(number % frameHosts), 10, 99, 2, 1})
	binary.BigEndian.PutUint16(ip[10:], headerChecksum(ip))
	udp := f[34:]
	binary.BigEndian.PutUint16(udp, uint16(40000+number%framePorts))
	binary.BigEndian.PutUint16(udp[2:], 9) // discard
	binary.BigEndian.PutUint16(udp[4:], uint16(size-34))
	binary.BigEndian.PutUint64(f[frameNumberAt:], uint64(number))
	return f
}

// headerChecksum is IPv4's (RFC 791), over a header whose checksum is 0.
func headerChecksum(h []byte) uint16 {
	var sum uint32
	for i := 0; i < len(h); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// frameNumber reads a frame's number; ok tells whether it is one of ours.
func frameNumber(f []byte) (number int64, ok bool) {
	if len(f) < frameLeast || binary.BigEndian.Uint16(f[12:]) != syscall.ETH_P_IP || [3]byte(f[26:29]) != [3]byte{10, 99, 1} {
		return 0, false
	}
	return int64(binary.BigEndian.Uint64(f[frameNumberAt:])), true
}

///// the sender

// From linux/if_packet.h; the standard library has it not.
const packetQdiscBypass = 20

// prepareFrames opens the interface. Frames go past its queueing discipline: the
// sender is to be as fast as it can, and taps at the far end see them all the same.
func prepareFrames(j job) (func() (outcome, error), error) {
	if j.Frames == nil || j.Size < frameLeast {
		return nil, fmt.Errorf("frames want an interface and at least %d bytes", frameLeast)
	}
	if err := stayOn(j.Frames.CPU); err != nil {
		return nil, err
	}
	fd, err := openRaw(j.Frames.Iface)
	if err != nil {
		return nil, err
	}
	s := &frameSender{job: j, fd: fd, batch: newFrameBatch(j.Size)}
	return func() (outcome, error) {
		o, err := s.run()
		return o, errors.Join(err, syscall.Close(fd))
	}, nil
}

// stayOn binds this thread to one processor.
func stayOn(cpu int) error {
	var mask [16]uint64
	mask[cpu/64%len(mask)] = 1 << (cpu % 64)
	_, _, errno := syscall.RawSyscall(syscall.SYS_SCHED_SETAFFINITY, 0, unsafe.Sizeof(mask), uintptr(unsafe.Pointer(&mask)))
	if errno != 0 {
		return fmt.Errorf("stay on CPU %d: %w", cpu, errno)
	}
	return nil
}

// openRaw opens a packet socket that sends only.
func openRaw(iface string) (int, error) {
	i, err := net.InterfaceByName(iface)
	if err != nil {
		return -1, fmt.Errorf("%s: %w", iface, err)
	}
	fd, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	err = errors.Join(
		os.NewSyscallError("setsockopt PACKET_QDISC_BYPASS", syscall.SetsockoptInt(fd, syscall.SOL_PACKET, packetQdiscBypass, 1)),
		os.NewSyscallError("bind", syscall.Bind(fd, &syscall.SockaddrLinklayer{Ifindex: i.Index})))
	if err != nil {
		_ = syscall.Close(fd) // the first error is what matters
		return -1, fmt.Errorf("open %s to send: %w", iface, err)
	}
	return fd, nil
}

// newFrameBatch is frameBatch frames; message i is for the numbers that leave i when
// divided by frameBatch.
func newFrameBatch(size int) *batch {
	b := makeBatch(frameBatch, size)
	for i := range b.msgs {
		copy(b.bufs[i], newFrame(size, int64(i)))
		b.iovs[i].SetLen(size)
		b.msgs[i].hdr.Name, b.msgs[i].hdr.Namelen = nil, 0 // the socket is bound
	}
	return b
}

type frameSender struct {
	job   job
	fd    int
	batch *batch
}

// run sends until Count frames are sent or For is over.
func (s *frameSender) run() (outcome, error) {
	runtime.LockOSThread()
	o := outcome{Start: now()}
	until := o.Start + int64(s.job.For)
	for {
		t := now()
		n := s.due(o.Ops, t-o.Start)
		if n == 0 || t >= until {
			o.End, o.Bytes = t, o.Ops*int64(s.job.Size)
			return o, nil
		}
		if n < 0 {
			s.rest()
			continue
		}
		k, err := s.send(s.job.Frames.First+o.Ops, n)
		if err != nil {
			return o, fmt.Errorf("after %d frames: %w", o.Ops, err)
		}
		o.Ops += int64(k)
	}
}

// due is how many frames to send now: 0 when all are sent, below 0 when it is early.
// With a rate they leave in bursts of a fifth of a millisecond, as a timer allows.
func (s *frameSender) due(sent, elapsed int64) int {
	left := int64(frameBatch)
	if s.job.Count > 0 {
		left = min(left, s.job.Count-sent)
	}
	rate := s.job.Frames.Rate
	if rate == 0 || left == 0 {
		return int(left)
	}
	n := elapsed*rate/1e9 + 1 - sent
	if n < min(left, max(1, rate/5000)) {
		return -1
	}
	return int(min(n, left))
}

func (s *frameSender) rest() {
	nap := syscall.NsecToTimespec(int64(50 * time.Microsecond))
	_ = syscall.Nanosleep(&nap, nil) // cut short by a signal, it is called again
}

// send sends n frames from a number on, up to the end of the batch. A frame that the
// interface has no room for is sent again.
func (s *frameSender) send(number int64, n int) (int, error) {
	first := int(number % frameBatch)
	n = min(n, frameBatch-first)
	for i := range n {
		binary.BigEndian.PutUint64(s.batch.bufs[first+i][frameNumberAt:], uint64(number+int64(i)))
	}
	k, err := s.batch.call(sysSendmmsg, s.fd, first, n, 0)
	if errors.Is(err, syscall.ENOBUFS) {
		return 0, nil
	}
	return k, err
}

///// the bench's side

// frameLimit bounds a job that ends by its count.
const frameLimit = 30 * time.Second

// send runs a job in the near namespace, and returns when the last frame has left.
func (b *captureBench) send(ctx context.Context, j job) (o outcome, err error) {
	c, err := b.sender(ctx, j)
	if err != nil {
		return outcome{}, err
	}
	defer func() { err = errors.Join(err, c.end()) }()
	if err := errors.Join(c.say("go"), c.hear(ctx, &o)); err != nil {
		return outcome{}, fmt.Errorf("sender: %w", err)
	}
	return o, nil
}

// sender starts a source that has the job and waits for a line to begin.
func (b *captureBench) sender(ctx context.Context, j job) (*child, error) {
	j.Kind, j.Frames.Iface, j.Frames.CPU = frames, nearIface, captureCPU()
	if j.For == 0 {
		j.For = frameLimit
	}
	line := inside(b.net.near, b.self, "source")
	c, err := startChild(line[0], line[1:]...)
	if err != nil {
		return nil, err
	}
	var ready string
	if err := errors.Join(c.say(j), c.hear(ctx, &ready)); err != nil {
		return nil, errors.Join(fmt.Errorf("sender: %w", err), c.end())
	}
	return c, nil
}
