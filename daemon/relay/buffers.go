package relay

import (
	"sync"

	"github.com/sockd/sockd/families"
)

// Room for what is in flight. A pump takes a buffer when there is something to
// receive and gives it back when there is not, so an idle session holds none,
// and a session whose far side does not read holds one a direction.
const (
	// streamRoom is one read of a stream: large enough that the system calls no
	// longer show, small enough to stay in a processor's cache.
	streamRoom = 64 << 10
	// messageRoom holds the largest message of any family: 65507 bytes of UDP, a
	// GSO frame of 64 KiB, and what unix sockets take at the stock
	// net.core.wmem_default of 212992. A longer one is cut, dropped and counted.
	messageRoom = vlanLen + vnetLen + 256<<10
)

// buffer is one piece of data in flight and the Msgs it travels in, so that a
// pump allocates nothing for each piece.
type buffer struct {
	room    []byte
	in, out families.Msg
	cutter  segmenter
}

var (
	streamBuffers  = sync.Pool{New: func() any { return &buffer{room: make([]byte, streamRoom)} }}
	messageBuffers = sync.Pool{New: func() any { return &buffer{room: make([]byte, messageRoom)} }}
)
