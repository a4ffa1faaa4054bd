package relay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/ksock"
	"github.com/sockd/sockd/families/model"
)

// DialError is a TO that could not be dialled.
type DialError struct {
	To   string // as the user wrote it
	Next string // a command that would help, or empty
	Err  error
}

// Error names the address once: that of the socket's own error, where it is another
// one, as what a host name was looked up to.
func (e *DialError) Error() string {
	err := e.Err
	_, address, _ := strings.Cut(e.To, ":")
	if op, ok := err.(*families.OpError); ok && op.Addr == address {
		err = op.Err
	}
	return fmt.Sprintf("dial %s: %v", e.To, err)
}

// Unwrap is the error of the socket.
func (e *DialError) Unwrap() error { return e.Err }

// Hint is a command that would help, or empty.
func (e *DialError) Hint() string { return e.Next }

// dialer is on whose behalf a relay dials.
type dialer struct {
	set     families.Set
	owner   model.Owner
	groups  []uint32
	control string // path of the control socket, never a target
}

// dial finds a backend for one session: each in the plan's order, until one
// answers. The error is the last one's.
func (d *dialer) dial(ctx context.Context, p *plan) (*leg, error) {
	p.hold()
	defer p.release()
	if p.balance == balanceFanout {
		return d.dialFan(ctx, p)
	}
	var last error
	for _, b := range p.order() {
		l, err := d.dialBackend(ctx, p, b)
		if err == nil {
			b.back()
			return l, nil
		}
		if !outOfDescriptors(err) {
			b.away()
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		last = err
	}
	return nil, last
}

// dialBackend dials one TO within the connect timeout.
func (d *dialer) dialBackend(ctx context.Context, p *plan, b *backend) (*leg, error) {
	ctx, cancel := withLimit(ctx, p.connectTimeout, "no connection")
	defer cancel()
	// The session counts from here on, so that "least" sees dials under way.
	b.busy.enter()
	l, err := d.openPatiently(ctx, b)
	if err != nil {
		b.busy.leave()
		if errors.Is(err, context.DeadlineExceeded) {
			err = context.Cause(ctx)
		}
		return nil, &DialError{To: b.text, Next: dialHint(b, err), Err: err}
	}
	l.active, l.proxy, l.own = b.busy, b.own.proxy, b.end.Network != families.NetworkID
	return l, nil
}

// withLimit bounds ctx by d, if it is a bound; what then did not come is in the cause.
func withLimit(ctx context.Context, d time.Duration, missing string) (context.Context, context.CancelFunc) {
	if d <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, d, fmt.Errorf("%s within %v: %w", missing, d, syscall.ETIMEDOUT))
}

// dialRetry is dial for one session, again and again for as long as retry= allows.
func (r *relay) dialRetry(ctx context.Context, p *plan) (*leg, error) {
	until := time.Now().Add(p.retry())
	for pause := soonestRedial; ; pause = min(2*pause, latestRedial) {
		l, err := r.dial(ctx, p)
		if err == nil || ctx.Err() != nil || time.Now().Add(pause).After(until) {
			return l, err
		}
		if !rest(ctx, pause) {
			return nil, err
		}
	}
}

// dialHint says what would let the daemon reach a socket that it may not.
func dialHint(b *backend, err error) string {
	path := b.end.Address
	// A path that a shell would take apart is no part of a command that is offered.
	if isUnixPath(b.end) && errors.Is(err, syscall.EACCES) && families.Escape(path) == path && !strings.ContainsAny(path, " '\"`$&|;<>()*?[]{}~#!") {
		return "setfacl -m u:sockd:rw " + path
	}
	return ""
}

// open is one TO as a leg.
func (d *dialer) open(ctx context.Context, b *backend) (*leg, error) {
	if b.end.Network == families.NetworkID {
		s := b.take()
		if s == nil {
			return nil, fmt.Errorf("it is joined already: %w", syscall.EBUSY)
		}
		return givenLeg(s, b)
	}
	targets, err := d.set.Resolve(ctx, b.end)
	if err != nil {
		return nil, err
	}
	var first error
	for _, t := range targets {
		s, err := d.openTarget(ctx, b, t)
		if err == nil {
			l := b.own.legOn(s, b.kind)
			l.text = textOf(b.end.Network, s.Info().Peer, b.text)
			if b.kind == kindPacket {
				err = l.becomePacket(t)
			}
			if err == nil {
				return l, nil
			}
			_ = s.Close() // the first error is the one to tell
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// givenLeg is a leg on a socket that was open already.
func givenLeg(s families.Socket, b *backend) (*leg, error) {
	l := b.own.legOn(s, b.kind)
	if b.kind == kindPacket {
		if err := l.becomePacket(families.Target{}); err != nil {
			_ = s.Close() // the first error is the one to tell
			return nil, err
		}
	}
	return l, nil
}

// openTarget opens, prepares and connects one socket.
func (d *dialer) openTarget(ctx context.Context, b *backend, t families.Target) (families.Socket, error) {
	s, err := t.Family.Open(ctx, t.Spec)
	if err != nil {
		return nil, pointAt(b.end, err)
	}
	if err := d.connect(ctx, s, b, t); err != nil {
		_ = s.Close() // the first error is the one to tell
		return nil, err
	}
	return s, nil
}

func (d *dialer) connect(ctx context.Context, s families.Socket, b *backend, t families.Target) error {
	if t.Addr == nil {
		return fmt.Errorf("%s names no address to dial: %w", b.text, families.ErrSyntax)
	}
	if err := prepare(s, t); err != nil {
		return err
	}
	if err := b.bindSource(s, t); err != nil {
		return err
	}
	switch {
	case b.kind == kindPacket:
		return s.Bind(t.Addr)
	case isUnixPath(b.end):
		return d.connectPath(ctx, s, b, t)
	}
	return s.Connect(ctx, t.Addr)
}

// bindSource gives a socket the address of src=, and a port of the system's choice.
func (b *backend) bindSource(s families.Socket, t families.Target) error {
	if !b.own.src.IsValid() {
		return nil
	}
	a, err := t.Family.ParseAddr(t.Spec.Type, netip.AddrPortFrom(b.own.src, 0).String())
	if err != nil {
		return err
	}
	return s.Bind(a)
}

// prepare sets what a relay wants of every socket, where the user has not said
// otherwise.
func prepare(s families.Socket, t families.Target) error {
	tune(s, t.Spec.Options)
	if t.Family.Name() == "local" && t.Spec.Type == families.Dgram {
		return autobind(s, t.Family)
	}
	return nil
}

// autobind gives a unix datagram socket an abstract name of the kernel's choice:
// without a name nobody could answer it.
func autobind(s families.Socket, f families.Family) error {
	a, err := f.ParseAddr(families.Dgram, "@")
	if err != nil {
		return err
	}
	return s.Bind(a)
}

// tuned are the socket options of a relay's TCP legs. Keepalive finds peers that
// vanished, within two minutes of silence. A relay passes on what it gets at
// once, so Nagle's algorithm would only add its wait to the sender's own. The
// urgent byte stays in its place, or it would be lost without a count.
var tuned = []families.Option{
	{Name: "so_keepalive", Value: "1"},
	{Name: "tcp_keepidle", Value: "60"},
	{Name: "tcp_keepintvl", Value: "15"},
	{Name: "tcp_keepcnt", Value: "4"},
	{Name: "tcp_nodelay", Value: "1"},
	{Name: "so_oobinline", Value: "1"},
}

// tune sets tuned on a TCP socket. A listening one hands them to what it accepts.
func tune(s families.Socket, said []families.Option) {
	o, err := families.As[families.Optioner](s)
	if err != nil || s.Info().Proto != "tcp" {
		return
	}
	for _, t := range tuned {
		if !says(said, t.Name) {
			_ = o.SetOption(t.Name, t.Value) // a kernel without it relays all the same
		}
	}
}

func says(options []families.Option, name string) bool {
	for _, o := range options {
		if o.Name == name {
			return true
		}
	}
	return false
}

// connectPath dials a unix path. One that the caller named is pinned first, so
// that what was checked is what is dialled, and dialled with the owner's rights;
// one that root's configuration names is dialled as it stands.
func (d *dialer) connectPath(ctx context.Context, s families.Socket, b *backend, t families.Target) error {
	if b.dir == nil {
		if d.isControl(inodeOf(t.Addr.Scope().Path)) {
			return controlReason(b.text)
		}
		return s.Connect(ctx, t.Addr)
	}
	return withFD(b.dir, func(dir int) error {
		return d.asOwner(func() error { return d.connectPinned(ctx, s, dir, b) })
	})
}

// asOwner calls f as the relay's owner when the daemon could be anybody.
func (d *dialer) asOwner(f func() error) error {
	if os.Geteuid() != 0 {
		return f()
	}
	return ksock.AsUser(d.owner.UID, d.owner.GID, d.groups, f)
}

func (d *dialer) connectPinned(ctx context.Context, s families.Socket, dir int, b *backend) error {
	target, err := ksock.OpenPath(dir, b.name)
	if err != nil {
		return err
	}
	defer target.Close() // O_PATH, nothing to lose
	if d.isControl(inode{target.Dev, target.Ino}) {
		return controlReason(b.text)
	}
	if err := d.trust(dir, target, b); err != nil {
		return err
	}
	return ksock.DialPath(ctx, s, target)
}

// trust follows a name to another inode, as after a backend's restart, only as
// far as the relay's owner could have meant it: the socket belongs to whom it
// belonged at first, and nobody but root, that user and the relay's owner may put
// another one in its place.
func (d *dialer) trust(dir int, target *ksock.PathTarget, b *backend) error {
	b.mu.Lock()
	if b.first == nil {
		b.first = &firstSeen{inode{target.Dev, target.Ino}, target.UID}
	}
	first := *b.first
	b.mu.Unlock()
	switch {
	case first.inode == inode{target.Dev, target.Ino}:
		return nil
	case target.UID != first.uid:
		return fmt.Errorf("the socket belongs to user %d now and belonged to %d when it was first dialled: %w", target.UID, first.uid, syscall.EPERM)
	}
	return ksock.OnlyWritableBy(dir, 0, first.uid, d.owner.UID)
}

// firstSeen is the socket that a path led to when it was first dialled.
type firstSeen struct {
	inode inode
	uid   uint32
}

// inode is a file's identity; the zero inode is none's.
type inode struct{ dev, ino uint64 }

// inodeOf is the identity of the file that a path leads to, or the zero inode.
func inodeOf(path string) inode {
	info, err := os.Stat(path)
	if err != nil {
		return inode{}
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return inode{}
	}
	return inode{uint64(st.Dev), st.Ino}
}

func (d *dialer) isControl(i inode) bool {
	return d.control != "" && i != inode{} && i == inodeOf(d.control)
}

func controlReason(to string) error {
	return &ReasonError{Reason: fmt.Sprintf("%s is sockd's own control socket", to), Next: "it is never a target"}
}

// withFD calls f with a file's descriptor, which stays open meanwhile.
func withFD(file *os.File, f func(fd int) error) error {
	rc, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := rc.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return err
	}
	return ferr
}

// newLeg is a leg on a socket of the session's own.
func newLeg(s families.Socket, k kind) *leg {
	i := s.Info()
	l := &leg{sock: s, kind: k, local: i.Family == "local"}
	if i.Peer != nil {
		l.text = textOf(i.Peer.Network(), i.Peer, "")
	}
	return l
}

// textOf is an address as NETWORK:ADDRESS, or what stands for an unnamed one.
func textOf(network string, a families.Addr, unnamed string) string {
	if a == nil {
		return unnamed
	}
	return network + ":" + a.String() // which is in escaped form already
}
