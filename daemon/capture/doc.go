// Package capture copies interfaces' packets to many. A Hub has one ring
// (families/packet/ring), that is one AF_PACKET socket, for each interface that
// somebody captures, whatever the number of subscriptions to it. The daemon calls
// it; it knows nothing of callers and permissions.
//
//	kernel ──ring──> tap.read ──select──> attachment ──store──> Run, RunFiles
//	                         └─select──> another's    ──store──> a recorder's history, shared memory
//
// A Subscription is what to select (source, filter, direction, snaplen, count) and a
// store, where packets wait as pcapng blocks until somebody reads them.
//
// # Interfaces
//
// A namespace in which somebody captures is a space: rtnetlink tells it which
// interfaces there are. An interface that a source names has a tap of its own, which
// ends with it; its subscriptions then wait for the next one of that name. Patterns and
// any are served by one tap on all interfaces, which never ends: it sees the first
// packet of an interface that comes later, and needs no ring more. The kernel
// rejects there what no subscription wants, by interface and by filter. A namespace other than our own
// has only this tap, because the caller passes only one socket.
//
// Each generation of an interface has its own description in a file: another name,
// or a new interface under an old name, is another generation.
//
// # Filters
//
// The kernel runs the union of all filters of a tap; here each subscription's own
// judges every frame again, on the frame as it was on the wire. A filter that is
// replaced is in the union beside the new one until the moment from which the new one
// counts, so that no packet is missed; packets are judged by their time.
//
// A filter with the word fragments has a filter.Follower for each interface. A fragment that
// comes before the first of its datagram is copied and held, within the follower's bounds, and stored
// right before that one; until then it is in no count. What was never decided is told at the
// end. The kernel lets all fragments through for such a filter.
//
// A filter that asks whose packets are has labels: a finder (families/packet/owner), which asks the
// kernel, /proc, and the daemon for sockets that it holds for callers (Hub.Broker). It is the filter's
// and lives as long as packets are judged by it, so that those from before a change are not
// nobody's. What it finds is written with the packet. Packets that are kept have nobody to ask: a dump
// and a trigger refuse such words.
//
// # Loss
//
// The reader of a ring never waits for a subscription: what does not fit a queue
// is dropped for that subscription alone. Loss is counted in three places, each
// since the subscription began, and once it has ended
//
//	sent     = received + dropped_kernel
//	received = delivered + dropped_daemon + dropped_subscriber
//
// where received is what passed its filter; dropped_kernel found no room in the ring,
// which is after the union of all filters; dropped_daemon found none in the memory that all queues share; and
// dropped_subscriber none in the subscription's own queue, because its writer was
// slow, or failed. The packet after a loss says in the file how many are missing.
//
// # Recorders
//
// A Recorder is a subscription whose store is a history, in memory, or a queue that
// RunFiles writes to a disk, whose files the recorder names and deletes. A dump takes
// references to the segments of a history, or reads files back, and writes what its
// filter takes in the order of time. It has the losses that packets tell of: those in
// front of packets that are left out are told by the next one that is not.
//
// # Life
//
// A tap starts its readers and waits for them when the last attachment leaves; then
// the socket and its memory are gone. So it is with a space and its follower.
//
// Lock order: Subscription.tie, tap.tune, then Subscription.mu, space.mu or Hub.mu,
// never two of the latter at once. Readers of rings hold Subscription.mu alone (and what Hub.Broker's
// function locks), and no lock across a system call but for the mmap(2) and munmap(2) of a history's
// segment, and a finder's questions, for which it has a tenth of the time.
// history.mu and disk.mu come after Subscription.mu, and disk.turn before it.
package capture
