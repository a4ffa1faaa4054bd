package ksock

import (
	"context"
	"fmt"
	"slices"
	"syscall"

	"github.com/mdlayher/socket"
	"github.com/sockd/sockd/families"
	"golang.org/x/sys/unix"
)

// Family is what differs between the families whose sockets are descriptors.
// Each family folder has one, which never changes.
type Family struct {
	// Name is the family's word, for errors and Info.
	Name string
	// Domain is its AF_ number.
	Domain int
	// Types are the types that Open opens; the others wrap ErrNotSupported.
	Types []families.Type
	// Addr reads a struct sockaddr. It is nil for an unnamed one, such as
	// 0.0.0.0:0: that is what makes the difference between new and bound.
	Addr func(t families.Type, n families.Name) families.Addr
	// Proto is the word for what SO_PROTOCOL says; without it the number stands.
	Proto func(protocol int) string
	// Options are the options for sockets of a type.
	Options func(t families.Type) []Option
	// Drops tells that the kernel drops what a full datagram or raw socket cannot
	// take, and counts it.
	Drops bool
	// Control tells that descriptors and credentials can come with messages.
	Control bool
	// Received may complete what was received, such as flags that are told by
	// the sender's address. It runs for each message, also for one that was cut.
	Received func(m *families.Msg)
}

// The kernel's numbers for our types.
var kernelTypes = [...]int{
	families.Stream:    unix.SOCK_STREAM,
	families.Dgram:     unix.SOCK_DGRAM,
	families.Seqpacket: unix.SOCK_SEQPACKET,
	families.Raw:       unix.SOCK_RAW,
}

func typeOf(kernel int) (families.Type, error) {
	for t, k := range kernelTypes {
		if t > 0 && k == kernel {
			return families.Type(t), nil
		}
	}
	return 0, fmt.Errorf("socket type %d: %w", kernel, families.ErrNotSupported)
}

// Open opens a socket and sets spec's options in order. The result is a *TCP,
// *Conn, *Lossy or *Base.
func (f *Family) Open(ctx context.Context, spec families.Spec) (families.Socket, error) {
	if err := ctx.Err(); err != nil {
		return nil, f.fail("open", spec.Type.String(), err)
	}
	if !slices.Contains(f.Types, spec.Type) {
		return nil, f.fail("open", spec.Type.String(), families.ErrNotSupported)
	}
	conn, err := socket.Socket(f.Domain, kernelTypes[spec.Type], spec.Protocol, f.Name, nil)
	if err != nil {
		return nil, f.fail("open", spec.Type.String(), cause(err))
	}
	b, err := newBase(f, conn)
	if err != nil {
		_ = conn.Close() // the first error is the one to tell
		return nil, f.fail("open", spec.Type.String(), err)
	}
	for _, o := range spec.Options {
		if err := b.SetOption(o.Name, o.Value); err != nil {
			_ = b.Close() // the first error is the one to tell
			return nil, err
		}
	}
	return b.dress(), nil
}

// Adopt wraps a socket descriptor, which is made non-blocking and close-on-exec.
// On success the socket owns fd; on error the caller still does.
func (f *Family) Adopt(fd int) (families.Socket, error) {
	// Everything that can go wrong is tried before socket.New takes fd over.
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return nil, f.fail("adopt", "", err)
	}
	if domain != f.Domain {
		return nil, f.fail("adopt", "", fmt.Errorf("descriptor is of address family %d: %w", domain, families.ErrNotSupported))
	}
	if _, err := socketType(fd); err != nil {
		return nil, f.fail("adopt", "", err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
		return nil, f.fail("adopt", "", err)
	}
	conn, err := socket.New(fd, f.Name)
	if err != nil {
		return nil, f.fail("adopt", "", cause(err))
	}
	b, err := newBase(f, conn)
	if err != nil {
		return nil, f.fail("adopt", "", err)
	}
	b.adopted()
	return b.dress(), nil
}

func (f *Family) fail(op, addr string, err error) error {
	return &families.OpError{Op: op, Family: f.Name, Addr: addr, Err: err}
}

func (f *Family) options(t families.Type) []Option {
	if f.Options == nil {
		return nil
	}
	return f.Options(t)
}

func socketType(fd int) (families.Type, error) {
	k, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return 0, err
	}
	return typeOf(k)
}

// cause takes the errno out of what mdlayher/socket and os wrapped it in, since
// OpError says the rest.
func cause(err error) error {
	for e := err; e != nil; {
		if errno, ok := e.(syscall.Errno); ok {
			return errno
		}
		u, ok := e.(interface{ Unwrap() error })
		if !ok {
			break
		}
		e = u.Unwrap()
	}
	return err
}
