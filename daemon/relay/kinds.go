package relay

import (
	"github.com/sockd/sockd/families"
)

// kind is how a socket's data moves: that decides what it can be joined to.
type kind uint8

// The kinds. Every endpoint has one, but id: and fd: show theirs only when they
// are taken.
const (
	kindUnknown   kind = iota
	kindStream         // bytes without borders
	kindDgram          // messages, no connection: FROM has sessions by peer
	kindSeqpacket      // messages over a connection
	kindPacket         // whole link-layer frames of one interface
	kindCooked         // frames without their link header
	kindRaw            // IP packets of one protocol
)

const (
	// packetFamily is the one family whose raw sockets are interfaces.
	packetFamily = "packet"
	// localFamily is the one whose messages can carry descriptors.
	localFamily = "local"
)

// kindOf tells the kind of a family's socket type.
func kindOf(family string, t families.Type) kind {
	switch {
	case t == families.Stream:
		return kindStream
	case t == families.Seqpacket:
		return kindSeqpacket
	case family == packetFamily && t == families.Raw:
		return kindPacket
	case family == packetFamily:
		return kindCooked
	case t == families.Raw:
		return kindRaw
	}
	return kindDgram
}

// accepts tells whether FROM of this kind listens and gives a socket a session.
func (k kind) accepts() bool { return k == kindStream || k == kindSeqpacket }

// endless tells whether a socket of this kind never says that it has ended.
func (k kind) endless() bool { return k == kindDgram || k == kindPacket }

// networkKind tells the kind that an endpoint's network has in a set of
// families; ok is false for a word that no family answers to.
func networkKind(set families.Set, e families.Endpoint) (k kind, ok bool) {
	if e.Network == families.NetworkID || e.Network == families.NetworkFD {
		return kindUnknown, true
	}
	for _, f := range set {
		for _, n := range f.Networks() {
			if n.Name != e.Network {
				continue
			}
			k := kindOf(f.Name(), n.Type)
			if k == kindPacket && hasOption(e, "cooked") {
				k = kindCooked
			}
			return k, true
		}
	}
	return kindUnknown, false
}

func hasOption(e families.Endpoint, name string) bool {
	for _, o := range e.Options {
		if o.Name == name {
			return true
		}
	}
	return false
}
