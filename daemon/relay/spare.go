package relay

import (
	"cmp"
	"context"
	"syscall"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/ksock"
)

// spare is a descriptor that is kept for a session's TO, from before its client is
// accepted. When descriptors run out, clients wait in the listener's queue until one
// is there for each side; without it they would be accepted and then reset.
type spare struct {
	fd ksock.FD
	// domain is the AF_ number of a socket that TO can be; 0: it only keeps a place,
	// and is closed when the place is needed.
	domain int
}

var noSpare = spare{fd: ksock.NoDescriptor}

// newSpare opens one. The caller drops it or hands it over.
func newSpare(domain int) (spare, error) {
	fd, err := ksock.NewFD(cmp.Or(domain, syscall.AF_UNIX))
	return spare{fd: fd, domain: domain}, err
}

// take is the spare as a socket of a domain, or a new one in its place.
func (s *spare) take(domain int) (ksock.FD, error) {
	if s.fd != ksock.NoDescriptor && s.domain == domain {
		fd := s.fd
		*s = noSpare
		return fd, nil
	}
	s.drop()
	return ksock.NewFD(domain)
}

// drop closes a spare that is there.
func (s *spare) drop() {
	if s.fd != ksock.NoDescriptor {
		s.fd.Close()
		*s = noSpare
	}
}

// acceptWithSpare is Accept with a place kept for the other side.
func acceptWithSpare(l families.Listener) (families.Socket, spare, error) {
	keep, err := newSpare(0)
	if err != nil {
		return nil, noSpare, err
	}
	c, err := l.Accept()
	if err != nil {
		keep.drop()
		return nil, noSpare, err
	}
	return c, keep, nil
}

// spareDescriptors closes what is open for speed alone.
func (e *Engine) spareDescriptors() {
	for _, sh := range e.allShards() {
		sh.do(sh.pipes.close)
		sh.do(sh.plainPipes.close)
	}
}

// openPatiently is open that waits when no descriptor is free, as long as ctx lets it:
// somebody else's end brings one.
func (d *dialer) openPatiently(ctx context.Context, b *backend) (l *leg, err error) {
	patiently(ctx, func() error {
		l, err = d.open(ctx, b)
		return err
	})
	return l, err
}

// patiently calls f until it does not fail for want of a descriptor, or ctx ends.
func patiently(ctx context.Context, f func() error) {
	for pause := soonestRetry; outOfDescriptors(f()) && rest(ctx, pause); {
		pause = min(2*pause, latestRetry)
	}
}
