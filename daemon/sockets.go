package daemon

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"syscall"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// localName is the family whose addresses are paths: those are opened with the
// rights of whoever named them.
const localName = "local"

// Open opens a socket, or with fd adopts one that the caller opened; on success
// the daemon owns fd. An unknown family or type wraps families.ErrSyntax.
func (d *Daemon) Open(ctx context.Context, c model.Caller, family, typ string, protocol int, protocolName string, fd int) (model.Socket, error) {
	ctx, end, err := d.begin(ctx)
	if err != nil {
		return model.Socket{}, err
	}
	defer end()
	f, s, err := d.open(ctx, family, typ, protocol, protocolName, fd)
	if err != nil {
		return model.Socket{}, err
	}
	k := newSock(d.NewID(), c.Owner(), 0, f, s)
	return d.enterTable(k, "opened"), nil
}

// maxProtocol is the largest that any family knows, an EtherType. socket(2) takes an
// int and would be given the lower half of a larger number.
const maxProtocol = 1<<16 - 1

func (d *Daemon) open(ctx context.Context, family, typ string, protocol int, protocolName string, fd int) (families.Family, families.Socket, error) {
	f, err := d.opts.Families.Family(family)
	if err != nil {
		return nil, nil, fmt.Errorf("open: %w", err)
	}
	t, err := families.ParseType(typ)
	if err != nil {
		return nil, nil, fmt.Errorf("open %s: %w", family, err)
	}
	if protocolName != "" {
		if protocol, err = f.ParseProtocol(t, protocolName); err != nil {
			return nil, nil, opError("open", f.Name(), protocolName, err)
		}
	}
	if protocol < 0 || protocol > maxProtocol {
		return nil, nil, opError("open", f.Name(), strconv.Itoa(protocol), fmt.Errorf("a protocol is a number from 0 to %d: %w", maxProtocol, families.ErrSyntax))
	}
	if err := d.table.room(); err != nil {
		return nil, nil, opError("open", f.Name(), typ, err)
	}
	var s families.Socket
	if fd >= 0 {
		s, err = adopt(f, t, fd)
	} else {
		s, err = f.Open(ctx, families.Spec{Type: t, Protocol: protocol})
	}
	return f, s, opError("open", f.Name(), typ, err)
}

// adopt takes a descriptor in as what its caller says it is. On error the caller
// still owns it.
func adopt(f families.Family, t families.Type, fd int) (families.Socket, error) {
	a, ok := f.(families.Adopter)
	if !ok {
		return nil, fmt.Errorf("its sockets are no descriptors: %w", families.ErrNotSupported)
	}
	domain, typ, err := kindOfFD(fd)
	switch {
	case err != nil:
		return nil, err
	case domain != a.Domain():
		return nil, fmt.Errorf("the descriptor is of address family %d: %w", domain, families.ErrSyntax)
	case typ != t:
		return nil, fmt.Errorf("the descriptor is of type %v: %w", typ, families.ErrSyntax)
	}
	return a.Adopt(fd)
}

// kindOfFD asks a descriptor for its AF_ number and type.
func kindOfFD(fd int) (domain int, t families.Type, err error) {
	domain, err = syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_DOMAIN)
	if err != nil {
		return 0, 0, err
	}
	number, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_TYPE)
	if err != nil {
		return 0, 0, err
	}
	types := map[int]families.Type{
		syscall.SOCK_STREAM: families.Stream, syscall.SOCK_DGRAM: families.Dgram,
		syscall.SOCK_SEQPACKET: families.Seqpacket, syscall.SOCK_RAW: families.Raw,
	}
	t, ok := types[number]
	if !ok {
		return 0, 0, fmt.Errorf("socket type %d: %w", number, families.ErrNotSupported)
	}
	return domain, t, nil
}

// enterTable puts a new socket in and tells of it. When the daemon stops at this
// very moment the socket is closed, as all others are.
func (d *Daemon) enterTable(k *sock, event string) model.Socket {
	v := k.view()
	if !d.table.put(k) {
		_ = k.close(errStopping) // nobody has used it
		return v
	}
	d.emitSocket(event, v)
	return v
}

// Bind gives a socket its address, which its family reads; names are looked up
// here. A path wraps families.ErrBorrow: the caller binds it.
func (d *Daemon) Bind(ctx context.Context, c model.Caller, id model.ID, addr string) (model.Socket, error) {
	call, err := d.call(ctx, c, "bind", id)
	if err != nil {
		return model.Socket{}, err
	}
	defer call.end()
	err = call.k.until(call.ctx, func(ctx context.Context) error { // a name server may take its time
		return call.eachAddr(ctx, addr, func(a families.Addr) error { return call.k.s.Bind(a) })
	})
	if err != nil {
		return model.Socket{}, call.fail(addr, err)
	}
	return call.done("bound"), nil
}

// eachAddr tries what addr stands for, in order, until one does. The error is the
// first one's.
func (c *call) eachAddr(ctx context.Context, addr string, try func(families.Addr) error) error {
	addrs, err := c.addrs(ctx, addr)
	if err != nil {
		return err
	}
	var first error
	for _, a := range addrs {
		err := try(a)
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// addrs reads an address for c's socket. A path is refused with families.ErrBorrow.
func (c *call) addrs(ctx context.Context, addr string) ([]families.Addr, error) {
	t := c.k.s.Info().Type
	if r, ok := c.k.family.(families.Resolver); ok {
		return r.Resolve(ctx, t, addr)
	}
	a, err := c.k.family.ParseAddr(t, addr)
	if err != nil {
		return nil, err
	}
	if a.Scope().Path != "" {
		return nil, families.ErrBorrow
	}
	return []families.Addr{a}, nil
}

// Listen opens the queue of pending connections; 0 or less is the system's
// largest. On a path it wraps families.ErrBorrow, because the kernel remembers who
// listens and tells every peer (SO_PEERCRED, unix(7)).
func (d *Daemon) Listen(ctx context.Context, c model.Caller, id model.ID, backlog int) (model.Socket, error) {
	call, err := d.call(ctx, c, "listen", id)
	if err != nil {
		return model.Socket{}, err
	}
	defer call.end()
	l, err := families.As[families.Listener](call.k.s)
	if err == nil && call.k.family.Name() == localName {
		err = families.ErrBorrow
	}
	if err == nil {
		err = l.Listen(backlog)
	}
	if err != nil {
		return model.Socket{}, call.fail("", err)
	}
	return call.done("listening"), nil
}

// Accept waits for a connection, which becomes a socket of the listening one's
// owner. It stays listed when the caller has gone meanwhile.
func (d *Daemon) Accept(ctx context.Context, c model.Caller, id model.ID) (model.Socket, error) {
	call, err := d.call(ctx, c, "accept", id)
	if err != nil {
		return model.Socket{}, err
	}
	defer call.end()
	s, err := call.accept()
	if err != nil {
		return model.Socket{}, call.fail("", err)
	}
	k := newSock(d.NewID(), call.k.owner, id, call.k.family, s)
	d.inherit(k, call.k)
	return d.enterTable(k, "accepted"), nil
}

func (c *call) accept() (families.Socket, error) {
	l, err := families.As[families.Listener](c.k.s)
	if err != nil {
		return nil, err
	}
	for {
		changes, err := c.k.state(nil)
		if err != nil {
			return nil, err
		}
		// Asked first, so that a connection stays in the kernel's queue when there
		// is no room for it.
		if err := c.d.table.room(); err != nil {
			return nil, err
		}
		s, err := l.Accept()
		if !errors.Is(err, families.ErrAgain) {
			return s, err
		}
		if err := c.k.await(c.ctx, changes, forEnd, families.Readable); err != nil {
			return nil, err
		}
	}
}

// Connect connects, and waits until the connection stands. An attempt that its
// caller has left is taken back. A path wraps families.ErrBorrow.
func (d *Daemon) Connect(ctx context.Context, c model.Caller, id model.ID, addr string) (model.Socket, error) {
	call, err := d.call(ctx, c, "connect", id)
	if err != nil {
		return model.Socket{}, err
	}
	defer call.end()
	err = call.k.until(call.ctx, func(ctx context.Context) error {
		return call.eachAddr(ctx, addr, func(a families.Addr) error { return call.k.s.Connect(ctx, a) })
	})
	if err != nil {
		return model.Socket{}, call.fail(addr, err)
	}
	return call.done("connected"), nil
}

// Shutdown ends a direction: rd, wr or both.
func (d *Daemon) Shutdown(ctx context.Context, c model.Caller, id model.ID, how string) (model.Socket, error) {
	call, err := d.call(ctx, c, "shutdown", id)
	if err != nil {
		return model.Socket{}, err
	}
	defer call.end()
	if err := shutdown(call.k.s, how); err != nil {
		return model.Socket{}, call.fail("", err)
	}
	return call.done("changed"), nil
}

func shutdown(s families.Socket, how string) error {
	h, err := families.As[families.HalfCloser](s)
	if err != nil {
		return err
	}
	switch how {
	case "rd":
		return h.CloseRead()
	case "wr":
		return h.CloseWrite()
	case "both":
		return h.CloseBoth()
	}
	return &families.SyntaxError{What: "direction", Text: how, Why: "want rd, wr or both"}
}

// Options reads (nil value) and sets options in order; none reads all.
func (d *Daemon) Options(ctx context.Context, c model.Caller, id model.ID, opts []model.Option) ([]model.Option, error) {
	call, err := d.call(ctx, c, "opt", id)
	if err != nil {
		return nil, err
	}
	defer call.end()
	o, err := families.As[families.Optioner](call.k.s)
	if err != nil {
		return nil, call.fail("", err)
	}
	all := len(opts) == 0
	if all {
		for _, name := range o.Options() {
			opts = append(opts, model.Option{Name: name})
		}
	}
	out := make([]model.Option, 0, len(opts))
	for _, opt := range opts {
		got, err := option(o, opt)
		if errno := syscall.Errno(0); all && errors.As(err, &errno) {
			continue // this kernel, this type or this state has it not (ip_mtu: ENOTCONN)
		}
		if err != nil {
			return nil, call.fail(opt.Name, err)
		}
		out = append(out, got)
	}
	return out, nil
}

func option(o families.Optioner, opt model.Option) (model.Option, error) {
	if opt.Value != nil {
		if err := o.SetOption(opt.Name, *opt.Value); err != nil {
			return model.Option{}, err
		}
	}
	value, err := o.Option(opt.Name)
	return model.Option{Name: opt.Name, Value: &value}, err
}

// Borrow calls f with a duplicate of a local socket's descriptor, for what the
// caller does with its own rights. f neither closes nor keeps it. Only the
// socket's owner gets it, and root.
func (d *Daemon) Borrow(ctx context.Context, c model.Caller, id model.ID, f func(fd int, typ string) error) error {
	call, err := d.call(ctx, c, "borrow", id)
	if err != nil {
		return err
	}
	defer call.end()
	k := call.k
	switch {
	case k.family.Name() != localName:
		return call.fail("", fmt.Errorf("only sockets of family %s are lent: %w", localName, families.ErrNotSupported))
	case c.UID != k.owner.UID && c.UID != 0:
		return call.fail("", fmt.Errorf("socket %d is uid %d's: %w", id, k.owner.UID, syscall.EPERM))
	}
	fd, err := duplicate(k.s)
	if err != nil {
		return call.fail("", err)
	}
	defer closeFD(fd)
	return f(fd, k.s.Info().Type.String())
}

// What one Return can tell of, and where the counters end: far above what a
// machine sends in its life, and low enough that what is added never makes them
// negative.
const (
	maxReturned = 1 << 40
	maxCount    = 1 << 62
)

// checkReturned refuses counts that cannot be true.
func (k *sock) checkReturned(done string, bytes, messages int64) error {
	why := ""
	switch {
	case bytes < 0 || messages < 0:
		why = "a count is not negative"
	case done != "send" && (bytes != 0 || messages != 0):
		why = "nothing is sent by that"
	case bytes > maxReturned || messages > maxReturned:
		why = "more than can have been sent"
	case k.messages && (bytes+model.MaxMessage-1)/model.MaxMessage > messages:
		why = "more bytes than so many messages can have"
	case k.txBytes.Load() > maxCount || k.txMessages.Load() > maxCount:
		why = "the socket's counters are full"
	default:
		return nil
	}
	return &families.SyntaxError{What: "count", Text: fmt.Sprintf("%d bytes, %d messages", bytes, messages), Why: why}
}

// events are what a borrower may have done, and what watchers are told of it.
var events = map[string]string{"bind": "bound", "connect": "connected", "listen": "listening", "send": ""}

// Return says what a borrower did (bind connect listen send), and what it sent.
func (d *Daemon) Return(ctx context.Context, c model.Caller, id model.ID, done string, bytes, messages int64) (model.Socket, error) {
	call, err := d.call(ctx, c, "return", id)
	if err != nil {
		return model.Socket{}, err
	}
	defer call.end()
	event, ok := events[done]
	if !ok {
		return model.Socket{}, call.fail(done, &families.SyntaxError{What: "use", Text: done, Why: "want bind, connect, listen or send"})
	}
	if err := call.k.checkReturned(done, bytes, messages); err != nil {
		return model.Socket{}, call.fail(done, err)
	}
	call.k.txBytes.Add(bytes)
	if call.k.messages {
		call.k.txMessages.Add(messages)
	}
	if event == "" {
		return call.k.view(), nil
	}
	return call.done(event), nil
}
