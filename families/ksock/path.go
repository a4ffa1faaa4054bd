package ksock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"

	"github.com/sockd/sockd/families"
	"golang.org/x/sys/unix"
)

// PathTarget is a unix socket in the file system, pinned: whatever happens to its
// name, dialling it reaches this inode or nothing.
type PathTarget struct {
	Name     string // as it was opened, in plain form
	Dev, Ino uint64
	UID, GID uint32 // the owner
	Mode     os.FileMode

	mu sync.Mutex // guards fd
	fd int        // O_PATH; -1 when closed
}

// AtCWD as dirfd stands for the working directory.
const AtCWD = unix.AT_FDCWD

// OpenPath pins the socket called name, relative to the directory dirfd. The last
// part of name may not be a symbolic link (ELOOP); what is no socket is
// ENOTSOCK. The caller closes the target.
func OpenPath(dirfd int, name string) (*PathTarget, error) {
	fd, err := openAt(dirfd, name)
	if err != nil {
		return nil, pathError(name, err)
	}
	t := &PathTarget{Name: name, fd: fd}
	if err := t.stat(); err != nil {
		_ = unix.Close(fd) // O_PATH, nothing to lose
		return nil, pathError(name, err)
	}
	return t, nil
}

func openAt(dirfd int, name string) (int, error) {
	for {
		fd, err := unix.Openat(dirfd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

func pathError(name string, err error) error {
	return &families.OpError{Op: "open", Family: "local", Addr: families.Escape(name), Err: err}
}

// stat refuses what is no socket: with O_PATH and O_NOFOLLOW a symbolic link is
// opened itself.
func (t *PathTarget) stat() error {
	var st unix.Stat_t
	if err := unix.Fstat(t.fd, &st); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFSOCK:
	case unix.S_IFLNK:
		return unix.ELOOP
	default:
		return unix.ENOTSOCK
	}
	t.Dev, t.Ino, t.UID, t.GID = uint64(st.Dev), st.Ino, st.Uid, st.Gid
	t.Mode = os.FileMode(st.Mode & 0o777)
	return nil
}

// Close unpins the socket. Twice is nil.
func (t *PathTarget) Close() error {
	t.mu.Lock()
	fd := t.fd
	t.fd = -1
	t.mu.Unlock()
	if fd < 0 {
		return nil
	}
	return unix.Close(fd)
}

// Same tells whether two targets are the same inode.
func (t *PathTarget) Same(u *PathTarget) bool { return t.Dev == u.Dev && t.Ino == u.Ino }

// DialPath connects s, an open unix socket, to the pinned one. Whether this
// process may is asked of the inode (write permission), not of the directories
// that lead to it. t must not be closed meanwhile.
func DialPath(ctx context.Context, s families.Socket, t *PathTarget) error {
	return s.Connect(ctx, pinned{name: t.Name, path: fmt.Sprintf("/proc/self/fd/%d", t.fd)})
}

// SendName is the address of the pinned socket for Msg.Peer: the datagram
// sockets' DialPath. It holds while t is open.
func (t *PathTarget) SendName() families.Name {
	return pinned{path: fmt.Sprintf("/proc/self/fd/%d", t.fd)}.Sockaddr()
}

// pinned is the address of a socket by its descriptor.
type pinned struct{ name, path string }

func (pinned) Network() string         { return "unix" }
func (p pinned) String() string        { return families.Escape(p.name) }
func (p pinned) Scope() families.Scope { return families.Scope{Path: p.name} }

func (p pinned) Sockaddr() families.Name {
	raw := make([]byte, 2, 2+len(p.path)+1)
	nativeEndian.PutUint16(raw, unix.AF_UNIX)
	return families.MakeName(append(append(raw, p.path...), 0))
}

// AsUser calls f on a thread of its own with the effective user and group uid and
// gid and the supplementary groups, and with the file permissions that go with
// them; what a peer sees of a connection that f makes is this user. f must do its
// work on the goroutine that it is called on. If the process is that user
// already, f is called where it is; another user takes CAP_SETUID and CAP_SETGID.
func AsUser(uid, gid uint32, groups []uint32, f func() error) error {
	if uint32(os.Geteuid()) == uid && uint32(os.Getegid()) == gid && uid != 0 {
		return f()
	}
	if os.Geteuid() == 0 && uid == 0 {
		return f()
	}
	result := make(chan error, 1)
	go asUser(uid, gid, groups, f, result)
	return <-result
}

// asUser never unlocks its thread, so that the runtime ends it and no other
// goroutine ever has this user's rights, or lack of them.
func asUser(uid, gid uint32, groups []uint32, f func() error, result chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == os.Getpid() {
		// The main thread cannot end, and it is what /proc and ps show of the process.
		// While it is locked here, another goroutine runs on another thread.
		done := make(chan error, 1)
		go asUser(uid, gid, groups, f, done)
		err := <-done
		runtime.UnlockOSThread()
		result <- err
		return
	}
	err := errLeft
	defer func() { result <- err }() // also when f leaves by runtime.Goexit
	if denied := become(uid, gid, groups); denied != nil {
		err = denied
		return
	}
	err = f()
}

// errLeft: f did not return.
var errLeft = errors.New("the function left its goroutine")

// become changes the calling thread alone, unlike syscall.Setuid and its kin. The
// real and the saved user stay, so the new user may neither signal nor trace it.
func become(uid, gid uint32, groups []uint32) error {
	const keep = ^uintptr(0)
	steps := []struct {
		what string
		call func() syscall.Errno
	}{
		{"setgroups", func() syscall.Errno { return setgroups(groups) }},
		{"setresgid", func() syscall.Errno {
			_, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, keep, uintptr(gid), keep)
			return errno
		}},
		{"setresuid", func() syscall.Errno {
			_, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(uid), keep)
			return errno
		}},
	}
	for _, s := range steps {
		if errno := s.call(); errno != 0 {
			return fmt.Errorf("become user %d: %s: %w", uid, s.what, errno)
		}
	}
	return nil
}
