package capture

import (
	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/sockd/sockd/families/packet/ring"
)

// A store keeps what a subscription has taken until somebody reads it: a queue for
// a stream or files, a history for a recorder, memory that is shared with the reader.
// The writing half below is called under the subscription's lock, by the readers of
// rings; how it is read is the store's own business.
type store interface {
	// describe takes in an interface. They are numbered from 0 in the order in
	// which they come, which is what Packet.Interface and Stats.Interface say. It may
	// not fail: the descriptions of a capture are few.
	describe(i *pcapng.Interface)
	// add takes a packet in, whose memory is the ring's, or says why there is no room
	// for it. It keeps neither p nor p.Data.
	add(p *pcapng.Packet) verdict
	// stats takes in the last statistics of an interface: nothing comes from it any
	// more.
	stats(s *pcapng.Stats)
	// flush is called when a block of the ring has been handed over, after something
	// was taken in: time to wake the reader.
	flush()
}

// verdict is what became of a packet.
type verdict uint8

const (
	kept verdict = iota
	noRoom
	noMemory // in what all stores share
)

// A blockTaker can have a whole block of the ring instead of copies of its packets.
type blockTaker interface {
	// takeBlock takes a block all of whose packets are wanted, after everything that the
	// store was given before; they are of one described interface, and dropped were
	// lost before the first of them. When it is true the block is the taker's, who may
	// change it and releases it once.
	takeBlock(b *ring.Block, iface uint32, dropped uint64) bool
}
