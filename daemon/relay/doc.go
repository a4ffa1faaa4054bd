// Package relay joins two endpoints: what arrives at FROM goes to TO, and back.
// The daemon owns one Engine and hands it every relay; nobody else uses it.
//
// # Who owns what
//
// The Engine owns its relays, a relay owns its listening socket and its
// sessions, a session owns its two sockets and the goroutines that pump between
// them. Each closes what it owns and waits for it: Engine.Close returns when no
// goroutine and no descriptor of any relay is left.
//
//	Engine ─┬─ relay ─┬─ front     FROM: acceptor (connections), udpFront (UDP to UDP), peers (other datagrams), once (id:, packet)
//	        │         ├─ plan      TO: backends in the order to dial them, and bounds; replaced as a whole
//	        │         └─ session ─┬─ leg FROM ──pump──► leg TO
//	        │                     └─ leg FROM ◄──pump── leg TO
//	        └─ relay ...
//
// Locks are taken in the order Engine, relay, session, peer, plan, and none is
// held across a system call or a call of the Host (but Engine.replacing, which only
// Replace takes, and those of a udpFront and its sessions while a counter of the
// kernel is read, which keeps the descriptor from being closed meanwhile).
//
// # How it ends
//
// The far side sees what the near side did: an end is passed on as an end while
// the other direction runs on, an error resets both after what was read before it
// has been delivered. A session's end closes its sockets, which is what wakes its
// pumps: they wait without contexts, so that waiting costs nothing.
//
// # What is counted
//
// Bytes and messages are counted when they are received, when they are passed on
// and when they are lost, so that in = out + in flight + lost for each direction
// of each session; what is in flight lies in the pump's one buffer. Losses have a
// cause each, and what the kernel drops from a full queue is one of them. A relay
// keeps the sums of sessions that have ended.
//
// A framed stream counts messages, as their sender meant them: what stands around
// one in the stream is not counted. A fanout's message is out when every branch has
// it in its queue; each branch keeps books of its own from there on (see fanSocket).
//
// # Sockets that are none
//
// Two sockets of messages are none to the kernel: framedSocket is a stream with
// framing=, on either side, and fanSocket is every TO of a relay with balance fanout.
// Sessions do not know them from others.
//
// # What cannot be joined
//
// The table is checkPair: streams to streams, messages to messages, where a stream
// with framing= has messages; raw IP sockets to nothing. Frames of a packet endpoint are messages; towards anything but a
// packet endpoint their checksums are completed and large ones cut (see
// segmenter).
package relay
