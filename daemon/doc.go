// Package daemon owns every socket, relay and capture of sockd. cmd/sockd makes
// one Daemon and hands it to the control server, whose Backend it satisfies; the
// control protocol itself is not its affair, and it makes no system call on a
// socket but through package families.
//
// # Who owns what
//
//	Daemon ── table ──── sock ──── families.Socket
//	   │                   └────── pieces that came back (pushback)
//	   ├───── relay.Engine ── relays, their listeners and sessions
//	   ├───── capture.Hub ─── rings, their subscriptions
//	   ├───── handed ──────── descriptors of systemd's that no relay has yet
//	   └───── feed ────────── watchers and their queues
//
// A socket lives from Open, Accept or an adopted descriptor until Close, whoever
// comes and goes meanwhile; a relay that takes it (id:7) owns it from then on. A
// capture lives as long as its caller, an attachment as long as its Run.
//
// The daemon has no goroutine of its own for a socket: a verb runs on its
// caller's, and Attach adds one for the other direction, which Run waits for.
// Every verb is counted. Close of a socket wakes those inside it and waits for
// them; Stop does so for all.
//
// # What a caller leaves behind
//
// A verb that takes something out of the kernel for a caller who has gone does
// not lose it: an accepted socket stays in the table, a received piece goes back
// to the front of its socket's queue, in the order in which the kernel gave it,
// and the next recv has it. A message that is longer than its caller can be given is
// not taken at all.
//
// # Lock order
//
// configured.turn, then sock.taking, then sock.mu. table.mu, feed.mu, watcher.mu,
// captures.mu, configured.mu, lent.mu and handed.mu are leaves: nothing else is locked
// while one of them is held. Readers of rings take table.mu with their subscription's lock
// held (broker).
//
// Two are held across system calls: sock.taking over one attempt to receive, which
// does not block, and configured.turn while relays or their files change, so that
// a reload and a call do not act on half of each other's work. The others are held
// over memory alone: a listing of ten thousand sockets asks the kernel about each
// of them with no lock at all.
package daemon
