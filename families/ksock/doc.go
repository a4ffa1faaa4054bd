// Package ksock is the only place with socket system calls: kernel sockets of
// any family, on top of mdlayher/socket, as families.Socket. The family folders
// open their sockets through it; the engines in daemon/relay and daemon/capture
// use its helpers for what the contract does not cover. Nobody else imports it:
// applications use package families.
//
// # How it is built
//
// Base is one generic core. The types around it add the capabilities that a
// socket type really has, so that a missing capability is a missing method:
//
//	Base   Bind Connect Recv Send Wait Info Control Option   every socket
//	Lossy  + Drops                                           datagram and raw sockets that the kernel drops from
//	Conn   + Listen Accept CloseRead CloseWrite              stream and seqpacket
//	TCP    + Reset                                           TCP
//
// A Family tells Base how to read addresses and which options there are, which is
// all that differs.
//
// # Rules of life
//
// Recv, Send and Accept make one system call on a non-blocking descriptor, under
// RawConn.Control, so that Close waits for calls under way and a descriptor
// number is never used after it was closed. They do not allocate. No method holds
// a lock during a system call, and no socket owns a goroutine: whoever waits
// does so on its own (see line).
package ksock
