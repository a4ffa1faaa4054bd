package relay

import (
	"sync"

	"github.com/sockd/sockd/families"
)

// Room for what is in flight. A pump takes a buffer when there is something to
// receive and gives it back when there is not, so an idle session holds none,
// and a session whose far side does not read holds one a direction.
const (
	// pieceRoom is one read of a stream, so that one whose sink does not read holds no
	// more.
	pieceRoom = 64 << 10
	// bulkRoom is one read of a stream that has filled some pieces in a row. From 64
	// KiB to 512 KiB the speed of bulk grows by half, and beyond that no more.
	bulkRoom = 512 << 10
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

// room is where pieces of streams pass through: a shard has one. What a sink did not
// take stays in it, and then the shard has another one.
type room [bulkRoom]byte

var rooms = sync.Pool{New: func() any { return new(room) }}

var (
	messageBuffers = sync.Pool{New: func() any { return &buffer{room: make([]byte, messageRoom)} }}
)
