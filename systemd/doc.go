// Package systemd is sockd's side of systemd's interfaces for services: the
// descriptors handed over at start (sd_listen_fds(3)), the words sent back to
// the service manager (sd_notify(3)), its store for descriptors that outlive the
// process (FDSTORE=1), its watchdog, and the journal as a place
// for log records with fields. The unit files that go with it lie beside the
// code and are installed by the Makefile.
//
// Only cmd/sockd calls it. It knows nothing of sockets beyond their
// descriptors, nothing of the control protocol, and it imports nothing of ours.
// Without systemd every part of it does nothing and says so: Files returns
// none, a Notifier drops its messages (and refuses descriptors), Handler writes
// text.
//
// The oldest systemd served is 252 (Debian 12, RHEL 9).
package systemd
