// Package config reads and writes sockd's settings: files in the syntax of
// systemd units, one section a file. The daemon and cmd/sockd call it; it opens
// no socket and knows no family, so what an endpoint means is checked by others.
//
//	sockd.conf        [Daemon] LogLevel= MaxSockets=
//	relays.d/NAME.conf [Relay] From= To= Balance= MaxConns= ConnectTimeout= Idle= HalfClose=
//	recorders.d/NAME.conf [Recorder] Source= Filter= Last= Bytes= File= Trigger= ...
//
// All are looked for in several directories. The file of the last directory that
// has one counts, and a link to /dev/null there masks the others. The files of
// FILE.d/*.conf change single keys, by the order of their names; they too replace
// and mask each other by name. Of a key given twice the last one counts; To= is a
// list, which each line makes longer. An empty value takes back all that was said
// of the key before.
//
// What cannot be read is a Problem that names file and line, and costs its own
// file only.
package config
