// Package varlink speaks Varlink (UAPI.20) over AF_UNIX stream sockets: the
// codec, a server, a client, and the interface description language. It knows
// none of sockd's methods. ctl serves and calls them with it; nobody else should
// need it.
//
// # A message
//
//	sendmsg: {"method":"org.example.Echo","parameters":{...}}\0   SCM_RIGHTS on its first byte
//
// A receiver must not take a byte beyond the NUL: what follows may be the next
// message with its own descriptors (the kernel glues a message without
// descriptors to the next one with them), or the raw bytes after an upgrade. So
// Conn looks first and takes exactly one message:
//
//	┌─> MSG_PEEK ── NUL at n? ──yes──> recvmsg n+1 bytes ──> message done
//	│       └───────no───> recvmsg all that was seen ─┐
//	└─────────────────────────────────────────────────┘
//
// # Descriptors
//
// A sender keeps its own: WriteMessage, Reply and Call never close what they are
// given. A receiver owns what it got: Message.CloseFiles closes what nobody took,
// and the server closes what a method left behind when it returns.
//
// # Life of a served call
//
//	accept ── limits ── read ── Authorize ── method ── answer ── read ── ...
//	                             │ context ends when the peer hangs up or Shutdown begins
//
// One goroutine a connection, calls of one connection in order. A peer that has
// only closed its sending half (printf | socat) still gets its answer.
package varlink
