// Package capture copies one interface's packets to many. A Hub has one ring
// (families/packet/ring), that is one AF_PACKET socket, for each interface that
// somebody captures, whatever the number of subscriptions to it. The daemon calls
// it; it knows nothing of callers and permissions.
//
//	kernel ──ring──> tap.read ──filter, cut, append──> Subscription's queue ──Run──> its writer
//	                         └─filter, cut, append──> another's queue ──Run──> its writer
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
// which is before the filter, unless all subscriptions to the interface have the
// same one; dropped_daemon found none in the memory that all queues share; and
// dropped_subscriber none in the subscription's own queue, because its writer was
// slow, or failed. The packet after a loss says in the file how many are missing.
//
// # Life
//
// The tap of an interface starts its reader and waits for it when the last
// subscription leaves; then the socket and its memory are gone. Lock order:
// tap.tune, then Subscription.mu or Hub.mu, never two of the latter at once.
package capture
