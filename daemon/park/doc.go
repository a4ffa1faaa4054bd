// Package park is the parking lot: what must outlive this process is parked in
// it and comes back at the next start, with a short record of what it was. It
// knows nothing of relays. The daemon parks a thing before its first byte
// moves, parks it again when it changes, and lets it leave when it ends.
//
// # How it works
//
// A lot is a pair of AF_UNIX sockets that nobody reads. A message waits in the
// pair's queue, and the descriptors that came with it (SCM_RIGHTS) stay open
// while it waits, whoever dies. So all that has to be held for a process that
// is gone are the two ends of the pair, for any number of sessions: they are
// given to a Store, which is systemd's descriptor store or sockd --supervise.
//
//	      tail                                     head
//	write ──► [9.3] [8.1] [gone 7] [9.2] [7.2] [7.1] ──► read
//	            ▲     ▲                ╰── dead ──╯
//	          live   live
//
// A lot is a log. Each message says of an ID all there is to say; the one of
// the highest generation counts, and a message "gone" ends it. Messages that do
// not count any more are dead. They leave at the head, and only there, so a
// live message at the head is copied to the tail first: the lot turns over. At
// each moment the kernel has every parked thing at least once; a process that is
// killed between the two steps leaves two equal messages, which count as one.
//
// All of one ID's messages are in one lot, from Park to Leave. That is why "gone"
// can be taken off when it comes to the head: what it ended left before it.
//
// # What it costs
//
// A message of 192 bytes at most is charged 768 bytes of the pair's send
// buffer, one byte more 1280 (measured, 64 bits), hence MessageSize. Park is one
// sendmsg(2); in the steady state Replace and Leave add the recvmsg(2) of a dead
// head each. Where many sit still while others come and go, each message that
// is added turns up to eight heads over.
//
// # Who may call
//
// One process at a time has a lot: two that take off heads would take off each
// other's. Within it all methods may be called from any goroutine at the same
// time. A lot has a mutex, which is held across the system calls on its pair,
// because memory must know the order of the queue; none of these calls waits.
// Nothing is called back and no other lock is taken while it is held.
//
// Calls about one ID come one after another: whoever owns the thing makes them.
package park
