// Package systemdtest boots a real systemd as process 1, for tests of what only
// a real systemd can show: activation, restarts, the watchdog, a unit's
// hardening. It takes a fifth of a second and no image, container engine or
// virtual machine: process 1 runs in namespaces of its own, on an overlay of
// this machine's root that is thrown away with it.
//
// It needs root, overlayfs, a cgroup2 hierarchy and systemd's programs. It is
// for tests only; no product code imports it.
package systemdtest
