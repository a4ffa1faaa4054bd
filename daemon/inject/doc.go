// Package inject sends frames that a caller brings out of an interface: when each is
// due, in the order in which they came, counted. The daemon calls it; it knows nothing of
// callers and permissions. The socket is families/packet/inject's.
//
//	caller ══pipe══> feed ──pieces──> Injection ──batches──> Sender ──> interface
//	                  reads ahead      paces, counts
//
// A single pass streams: at most feedPieces pieces are read ahead. Several passes keep
// the frames in memory, within keepMost and what the Memory of all injections has
// left, so that no caller has to send them again.
//
// # What is lost
//
// A frame that the interface does not take (too long, too short) is counted and left
// out, and so is one for which its queue has no room for sendPatience; the rest goes on,
// and the end tells. An interface that goes down or away ends the whole.
package inject
