// Package families is the contract between sockd and the protocol families it
// knows: what a family is, what a socket of any family can do, and how an
// endpoint is written. It imports the standard library only and makes no system
// call. The daemon uses families through it; each folder below implements it.
//
// # The laws
//
// Every family keeps these laws, and familytest.Run checks them:
//
//   - An address prints what it parses: ParseAddr(t, a.String()) equals a.
//   - Recv, Send and Accept are single attempts that never block. They return
//     ErrAgain when there is nothing to do, and Wait tells when to try again.
//   - Any number of callers may Wait on one socket. Each ends alone: by
//     readiness, by its own context, or by Close.
//   - Close ends every Wait with net.ErrClosed. Closing twice is nil.
//   - A message keeps its borders, from 0 bytes to the largest the family has.
//     A message that did not fit is ErrCut, with the part that did.
//   - The end of a stream or of a connection of messages is io.EOF. A message of
//     0 bytes is not the end.
//   - A capability that a socket lacks is a method that it lacks: As says so with
//     an error that wraps ErrNotSupported.
//
// # To add a family
//
// Copy the nearest folder, write its Family, its addresses and its sockets, add
// its line to families/all, and call familytest.Run in its test.
package families
