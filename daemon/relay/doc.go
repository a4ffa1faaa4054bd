// Package relay joins two endpoints: what arrives at FROM goes to TO, and back.
// The daemon owns one Engine and hands it every relay; nobody else uses it.
//
// # Who owns what
//
// The Engine owns its shards and its relays, a relay owns its listening socket and its
// sessions, a session owns its two sockets. Each closes what it owns and waits for it:
// Engine.Close returns when no goroutine and no descriptor of any relay is left.
//
//	Engine ─┬─ shard     an event loop: one thread, one epoll set, thousands of descriptors
//	        ├─ relay ─┬─ front     FROM: acceptor (connections), udpFront (UDP to UDP), peers (other datagrams), once (id:, packet)
//	        │         ├─ plan      TO: backends in the order to dial them, and bounds; replaced as a whole
//	        │         └─ session ─┬─ FROM ──►── TO
//	        │                     └─ FROM ──◄── TO
//	        └─ relay ...
//
// A session is one of three kinds, all of them conversations to their relay:
//
//	stream        two bare stream descriptors on a shard, which alone touches them
//	udpSession    a client of a udpFront: its TO, on the shard of FROM
//	session       all else: messages between two families.Sockets, a goroutine a direction
//
// What comes before a stream's first byte and takes more than a system call (a PROXY
// header, a host name, a path to open as its owner) is a prologue: a goroutine, which
// hands both sides to the shard and ends.
//
// Locks are taken in the order Engine, relay, session, peer, plan, and none is
// held across a system call or a call of the Host (but Engine.replacing, which only
// Replace takes, and those of a udpFront and its sessions while a counter of the
// kernel is read, which keeps the descriptor from being closed meanwhile). What runs on
// a shard never blocks, and takes a lock only for some assignments.
//
// # How it ends
//
// The far side sees what the near side did: an end is passed on as an end while
// the other direction runs on, an error resets both after what was read before it
// has been delivered. Whoever wants a session to end calls its end, from anywhere: a
// stream is told on its shard; the others close their sockets, which is what wakes
// their pumps: they wait without contexts, so that waiting costs nothing.
//
// # What is counted
//
// Bytes and messages are counted when they are received, when they are passed on
// and when they are lost, so that in = out + in flight + lost for each direction
// of each session; what is in flight is one piece or one message a direction, and what
// waits for a dial or for room. Engine.Audit checks that while all runs; audit.go says
// what is in and what is out. Losses have a cause each, and what the kernel drops from a
// full queue is one of them, but was not received. A relay keeps the sums of sessions
// that have ended, and of messages that belonged to none.
//
// A framed stream counts messages, as their sender meant them: what stands around
// one in the stream is not counted. A fanout's message is out when every branch has
// it in its queue; each branch keeps books of its own from there on (see fanSocket).
//
// # What outlives this process
//
// With Options.Parking every relay's listener, specification and ledger (its counters) are
// parked, and so are the sessions of durable relays: the client before it is dialled, then
// both sides and both pipes before the first byte moves. Restore takes all up in another
// process. One process moves the bytes of a session at a time: the one before is dead, or
// has returned from Abandon. That, and three rules, is why no byte is lost or doubled:
//
//   - A byte of a durable stream is in its source, its pipe or its sink: splice(2) moves
//     it from one to the next within a call, and a kill comes before or after a call's move.
//   - in and out are written to the ledger after each move and before the next, so one
//     move at most is not there, and what is in the pipe tells which (lane.settle).
//   - What was decided is written down before it is done (account.fate), and doing it
//     again does no harm: a FIN that was sent is not sent again, an end that was read is
//     read again, a socket that was reset gives an error.
//
// The kernel tells an error once, and an end from then on. So a session that was taken up
// asks TCP how much it has received before it passes an end on: one more than in after a
// FIN, in after a reset (way.endIsTrue). The urgent byte is sent from a peek, written
// down, and then taken. A parked duplicate keeps close(2) from ending a connection, so
// sessions end by shutdown(2), or by connect(2) to AF_UNSPEC, and listeners too.
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
// with framing= has messages; raw IP sockets to nothing. Frames of a packet endpoint
// are messages; towards anything but a packet endpoint their checksums are completed
// and large ones cut (see segmenter).
package relay
