package relay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"
	"syscall"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/ksock"
	"github.com/sockd/sockd/families/model"
)

// socket is FROM's socket and where it came from, which says how it is let go.
type socket struct {
	sock   families.Socket
	state  families.State
	names  []string // what it is bound to
	kind   kind
	target families.Target // of an endpoint that was opened here

	path string // of the file that bind made, or empty

	host Host
	name string   // of systemd's descriptor, which goes back, or empty
	id   model.ID // of a verb's socket that was taken, or 0

	adopted bool // the caller bound it

	taken    bool         // a session owns the socket
	released *atomic.Bool // close was called
}

func (s *socket) local() []string { return s.names }

// handed notes that a session owns the socket now.
func (s *socket) handed() { s.taken = true }

// drops is what the kernel dropped from the queue.
func (s *socket) drops() uint64 { return kernelDrops(s.sock) }

// close lets go of the socket: systemd's goes back, others are closed.
func (s *socket) close() {
	if s.released.Swap(true) || s.taken {
		return
	}
	if s.name != "" {
		s.host.GiveBack(s.name, s.sock)
		return
	}
	_ = s.sock.Close() // it is gone either way
}

// undo is close for a relay that did not come to be: what was taken goes back.
func (s *socket) undo() {
	if u, ok := s.host.(Untaker); ok && s.id != 0 && !s.released.Swap(true) {
		if o, err := families.As[families.Optioner](s.sock); err == nil && s.kind == kindPacket {
			_ = o.SetOption("packet_vnet_hdr", "0") // as its owner had it
		}
		u.Untake(s.id, s.sock)
		return
	}
	s.close()
}

// Untaker is a Host that takes an id: socket back when its relay did not come to
// be. Without it the socket is closed.
type Untaker interface {
	Untake(id model.ID, s families.Socket)
}

// openFrom opens, adopts or takes FROM's socket, bound and listening.
func (e *Engine) openFrom(ctx context.Context, spec model.RelaySpec) (socket, error) {
	s, err := e.findFrom(ctx, spec)
	if err != nil {
		return socket{}, err
	}
	s.host, s.released = e.opts.Host, new(atomic.Bool)
	s.describe(spec.From.Network)
	return s, nil
}

// describe reads what the socket is. network is FROM's word.
func (s *socket) describe(network string) {
	i := s.sock.Info()
	s.kind, s.state = kindOf(i.Family, i.Type), i.State
	if i.Local != nil {
		if network == families.NetworkID || network == families.NetworkFD {
			network = i.Local.Network()
		}
		s.names = []string{textOf(network, i.Local, "")}
	}
}

func (e *Engine) findFrom(ctx context.Context, spec model.RelaySpec) (socket, error) {
	switch {
	case spec.From.Network == families.NetworkID:
		return e.takeID(spec)
	case spec.From.Network == families.NetworkFD:
		sock, err := e.opts.Host.Named(spec.From.Address)
		return socket{sock: sock, name: spec.From.Address}, err
	case spec.FromFD >= 0:
		return e.adoptFrom(ctx, spec)
	case spec.Lent && spec.From.NamesPath():
		return socket{}, fmt.Errorf("relay from %s: %w", spec.From, families.ErrBorrow)
	}
	return e.bindFrom(ctx, spec)
}

func (e *Engine) takeID(spec model.RelaySpec) (socket, error) {
	id, err := parseID(spec.From)
	if err != nil {
		return socket{}, err
	}
	sock, err := e.opts.Host.Take(spec.Owner, id)
	return socket{sock: sock, id: id}, err
}

// adoptFrom takes a duplicate of the descriptor that the caller bound, so that
// the caller keeps its own if anything goes wrong later.
func (e *Engine) adoptFrom(ctx context.Context, spec model.RelaySpec) (socket, error) {
	targets, err := e.opts.Families.Resolve(ctx, familyPart(spec.From))
	if err != nil {
		return socket{}, err
	}
	t := targets[0]
	adopter, ok := t.Family.(families.Adopter)
	if !ok {
		return socket{}, fmt.Errorf("%s: a %s socket cannot be handed over: %w", spec.From, t.Family.Name(), families.ErrNotSupported)
	}
	fd, err := ksock.Dup(spec.FromFD)
	if err != nil {
		return socket{}, err
	}
	if err := checkLent(fd, adopter.Domain(), t); err != nil {
		ksock.CloseFiles([]int{fd})
		return socket{}, fmt.Errorf("relay from %s: the descriptor %w", spec.From, err)
	}
	sock, err := adopter.Adopt(fd)
	if err != nil {
		ksock.CloseFiles([]int{fd})
		return socket{}, err
	}
	if i := sock.Info(); i.Type != t.Spec.Type {
		_ = sock.Close() // the reason is the one to tell
		return socket{}, fmt.Errorf("relay from %s: the descriptor is a %s socket: %w", spec.From, i.Type, families.ErrSyntax)
	}
	return socket{sock: sock, target: t, adopted: true}, listenBound(sock)
}

// checkLent refuses a descriptor that is no socket of the target's family. The
// error goes on where "the descriptor" stands in front of it.
func checkLent(fd, domain int, t families.Target) error {
	got, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_DOMAIN)
	switch {
	case errors.Is(err, syscall.ENOTSOCK), errors.Is(err, syscall.EBADF): // EBADF: O_PATH
		return fmt.Errorf("is no socket: %w", families.ErrSyntax)
	case err != nil:
		return fmt.Errorf("does not say what it is: %w", err)
	case got != domain:
		return fmt.Errorf("is a socket of address family %d, and %s is %d: %w", got, t.Family.Name(), domain, families.ErrSyntax)
	}
	return nil
}

// listenBound makes a connection socket listen that its caller only bound.
func listenBound(s families.Socket) error {
	l, err := families.As[families.Listener](s)
	if err != nil || s.Info().State != families.Bound {
		return nil // it has no connections, or has them already
	}
	return l.Listen(0)
}

// bindFrom opens FROM here: each address that its name has, until one binds.
func (e *Engine) bindFrom(ctx context.Context, spec model.RelaySpec) (socket, error) {
	own, err := readOptions(spec.From)
	if err != nil {
		return socket{}, err
	}
	targets, err := e.opts.Families.Resolve(ctx, familyPart(spec.From))
	if err != nil {
		return socket{}, err
	}
	var first error
	for _, t := range targets {
		s, err := bindTarget(ctx, spec, t, own)
		if err == nil {
			return s, nil
		}
		if first == nil {
			first = err
		}
	}
	return socket{}, first
}

// bindTarget opens, binds and listens.
func bindTarget(ctx context.Context, spec model.RelaySpec, t families.Target, own ownOptions) (socket, error) {
	sock, err := t.Family.Open(ctx, t.Spec)
	if err != nil {
		return socket{}, pointAt(spec.From, err)
	}
	s := socket{sock: sock, target: t}
	if err := s.bind(spec.From, own); err != nil {
		_ = sock.Close() // the first error is the one to tell
		return socket{}, err
	}
	return s, nil
}

func (s *socket) bind(from families.Endpoint, own ownOptions) error {
	t := s.target
	if t.Addr == nil {
		return fmt.Errorf("%s names no address to bind: %w", from, families.ErrSyntax)
	}
	tune(s.sock, t.Spec.Options)
	if err := s.sock.Bind(t.Addr); err != nil {
		return err
	}
	if isUnixPath(from) {
		s.path = t.Addr.Scope().Path
		if err := own.apply(s.path); err != nil {
			return err
		}
	}
	l, err := families.As[families.Listener](s.sock)
	if err != nil {
		return nil // it has no connections
	}
	return l.Listen(own.backlog)
}

// apply gives a unix path its permissions and owner.
func (o ownOptions) apply(path string) error {
	if o.owner[0] != nil || o.owner[1] != nil {
		uid, gid := -1, -1
		if o.owner[0] != nil {
			uid = int(*o.owner[0])
		}
		if o.owner[1] != nil {
			gid = int(*o.owner[1])
		}
		if err := os.Lchown(path, uid, gid); err != nil {
			return err
		}
	}
	if o.mode != nil {
		return os.Chmod(path, fs.FileMode(*o.mode))
	}
	return nil
}

// newFront is the front that fits FROM's socket.
func (e *Engine) newFront(s socket, from families.Endpoint, p *plan) (front, error) {
	switch {
	case s.state == families.Listening:
		return newAcceptor(e, s, p.own.framing == "" && !p.single())
	case s.kind == kindPacket:
		o, err := packetOnce(s)
		if err != nil {
			return nil, err
		}
		if lasts(s, p) {
			return newCable(o), nil
		}
		return o, nil
	case s.state == families.Connected || s.state == families.HalfClosed:
		return &once{socket: s, leg: p.own.legOn(s.sock, s.kind)}, nil
	case s.isUDP() && udpOnly(p):
		return newUDPFront(s, p)
	case s.kind == kindDgram && s.state == families.Bound:
		passCredentials(s.sock)
		return newPeers(s), nil
	}
	return nil, &ReasonError{
		Reason: fmt.Sprintf("%s is a %s socket that is %s", from, s.sock.Info().Type, s.state),
		Next:   "a FROM listens, is connected, or is a bound datagram socket",
	}
}

// passCredentials makes a unix datagram socket tell who sends: answers to a path
// go only to its owner.
func passCredentials(s families.Socket) {
	if o, err := families.As[families.Optioner](s); err == nil && s.Info().Family == "local" {
		_ = o.SetOption("so_passcred", "1") // without it, clients with a path get no answers
	}
}
