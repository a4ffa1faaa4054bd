// Package prove shows what crash and upgrade do to connections: sockd under a real
// systemd, by the unit that is shipped, killed and replaced again and again while
// connections through it run. It holds tests only, and nothing imports it.
//
// `make test` runs it for half a minute; `make prove` at the sizes that the
// documentation speaks of. A lost byte, a reset or a refused connection fails it.
//
// The connections are made by a child process, the test binary itself, inside the
// machine that package systemdtest boots:
//
//	test ── boots ──► machine ─┬─ systemd ── sockd.service   killed, restarted, replaced
//	  │                        └─ load: clients ──► relays ──► backends
//	  ╰──── commands, results, by lines ────╯
package prove
