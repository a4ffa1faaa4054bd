// Package files names and cuts the files of a capture, and makes the system calls
// that writing them takes. daemon/capture writes through File and cuts by Clock;
// ctl, whose caller's rights open the files, names them by Pattern and deletes by Keep.
// Names, Clock and Keep are pure: they make no system call. Who wants to write any
// other file uses package os.
//
//	sockd-ctl: Pattern ── opens .cap.pcapng.1.part ── descriptor ──> sockd: File, Clock
//	           renames it cap_00001.pcapng <── it is complete ──────
//	           Keep: deletes the oldest
package files
