package inject

import (
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
)

// Why a frame was not sent though others were.
const (
	tooLong = iota
	tooShort
	noBuffers
	causes
)

var causeNames = [causes]string{"too_long", "too_short", "no_buffers"}

// failure counts frames that were not sent for one cause, and remembers the first.
type failure struct {
	count  atomic.Int64
	number int64 // of the first, from 1
	size   int   // its length
}

// add belongs to Run.
func (f *failure) add(number int64, size int) {
	if f.count.Add(1) == 1 {
		f.number, f.size = number, size
	}
}

// failures tells of the frames that were not sent, each kind once.
func (n *Injection) failures() error {
	i := n.sender.Interface()
	longest := i.MTU + i.Header
	var errs []error
	for cause, why := range [causes]struct {
		text  string
		errno syscall.Errno
	}{
		tooLong:   {fmt.Sprintf("longer than %d bytes (%d with a VLAN tag)", longest, longest+vlanTag), syscall.EMSGSIZE},
		tooShort:  {fmt.Sprintf("shorter than a link-level header, %d bytes", n.shortest()), syscall.EINVAL},
		noBuffers: {fmt.Sprintf("no room in the queue for %v", sendPatience), syscall.ENOBUFS},
	} {
		f := &n.counts.failed[cause]
		if count := f.count.Load(); count > 0 {
			errs = append(errs, n.opError(fmt.Errorf("%s not sent, the first is frame %d of %d bytes: %s: %w", framesText(count), f.number, f.size, why.text, why.errno)))
		}
	}
	return errors.Join(errs...)
}

// vlanTag is what a frame may be longer when it has a VLAN tag.
const vlanTag = 4

func framesText(n int64) string {
	if n == 1 {
		return "1 frame"
	}
	return fmt.Sprintf("%d frames", n)
}
