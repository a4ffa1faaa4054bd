package relay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// lot is a Parking that holds duplicates in this process.
type lot struct {
	mu    sync.Mutex // guards what follows
	held  map[uint64]Parked
	most  int // how many; 0: no bound
	parks int
}

func newLot() *lot { return &lot{held: map[uint64]Parked{}} }

func (l *lot) Park(rec ParkRecord, fds []int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	old, again := l.held[rec.ID]
	if !again && l.most > 0 && len(l.held) >= l.most {
		return fmt.Errorf("the lot is full: %w", syscall.ENOBUFS)
	}
	p := Parked{ParkRecord: rec}
	p.Data = slices.Clone(rec.Data)
	for _, fd := range fds {
		n, err := syscall.Dup(fd)
		if err != nil {
			return err
		}
		syscall.CloseOnExec(n)
		p.FDs = append(p.FDs, n)
	}
	closeAll(old.FDs)
	l.held[rec.ID] = p
	l.parks++
	return nil
}

func (l *lot) Leave(id uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	closeAll(l.held[id].FDs)
	delete(l.held, id)
}

// take is all that is parked, as duplicates for Restore; it stays parked.
func (l *lot) take(tb testing.TB) (out []Parked) {
	tb.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(l.held)) {
		p := l.held[id]
		p.FDs = nil
		for _, fd := range l.held[id].FDs {
			n, err := syscall.Dup(fd)
			require.NoError(tb, err)
			syscall.CloseOnExec(n)
			p.FDs = append(p.FDs, n)
		}
		out = append(out, p)
	}
	return out
}

func (l *lot) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.held)
}

func (l *lot) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.held {
		closeAll(p.FDs)
	}
	l.held = map[uint64]Parked{}
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = syscall.Close(fd)
	}
}

// lotWire is a Parking whose other end is a keeper, in another process: each call is one
// message of a SOCK_SEQPACKET pair, which the kernel has when the call returns.
type lotWire struct{ fd int }

const (
	opPark byte = iota + 1
	opLeave
	opEnd
)

func (w lotWire) Park(rec ParkRecord, fds []int) error {
	m := append([]byte{opPark, rec.Kind}, binary.LittleEndian.AppendUint64(nil, rec.ID)...)
	m = binary.LittleEndian.AppendUint32(m, rec.UID)
	return sendFDs(w.fd, append(m, rec.Data...), fds)
}

func (w lotWire) Leave(id uint64) {
	if err := sendFDs(w.fd, binary.LittleEndian.AppendUint64([]byte{opLeave, 0}, id), nil); err != nil {
		panic(err)
	}
}

func sendFDs(fd int, m []byte, fds []int) error {
	var rights []byte
	if len(fds) > 0 {
		rights = syscall.UnixRights(fds...)
	}
	for {
		err := syscall.Sendmsg(fd, m, rights, nil, syscall.MSG_NOSIGNAL)
		if err != syscall.EINTR {
			return err
		}
	}
}

// recv is one message, or io.EOF.
func (w lotWire) recv() (op byte, p Parked, err error) {
	b, c := make([]byte, 256), make([]byte, syscall.CmsgSpace(4*MaxParkFDs))
	var n, cn int
	for {
		n, cn, _, _, err = syscall.Recvmsg(w.fd, b, c, syscall.MSG_CMSG_CLOEXEC)
		if err != syscall.EINTR {
			break
		}
	}
	switch {
	case err != nil:
		return 0, Parked{}, err
	case n == 0:
		return 0, Parked{}, io.EOF
	case n < 10:
		return b[0], Parked{}, nil
	}
	p.Kind, p.ID = b[1], binary.LittleEndian.Uint64(b[2:])
	if n >= 14 {
		p.UID, p.Data = binary.LittleEndian.Uint32(b[10:]), slices.Clone(b[14:n])
	}
	p.FDs, err = rightsIn(c[:cn])
	return b[0], p, err
}

func rightsIn(control []byte) (fds []int, err error) {
	msgs, err := syscall.ParseSocketControlMessage(control)
	for i := range msgs {
		got, perr := syscall.ParseUnixRights(&msgs[i])
		fds, err = append(fds, got...), errors.Join(err, perr)
	}
	return fds, err
}

// keep holds what comes over the wire until the other end is closed, and then closes
// this one.
func (l *lot) keep(w lotWire) error {
	defer syscall.Close(w.fd)
	for {
		op, p, err := w.recv()
		switch {
		case err == io.EOF, err == syscall.ECONNRESET:
			return nil
		case err != nil:
			return err
		case op == opLeave:
			l.Leave(p.ID)
		default:
			err = l.Park(p.ParkRecord, p.FDs)
			closeAll(p.FDs)
		}
		if err != nil {
			return err
		}
	}
}

// hand gives all that is parked to the process at the other end.
func (l *lot) hand(w lotWire) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.held {
		if err := w.Park(p.ParkRecord, p.FDs); err != nil {
			return err
		}
	}
	return sendFDs(w.fd, []byte{opEnd}, nil)
}

// all is what hand gave.
func (w lotWire) all() (out []Parked, err error) {
	for {
		op, p, err := w.recv()
		if err != nil || op == opEnd {
			return out, err
		}
		out = append(out, p)
	}
}

func mustPair(tb testing.TB) (a, b lotWire) {
	tb.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	require.NoError(tb, err)
	return lotWire{fds[0]}, lotWire{fds[1]}
}

func fileOf(w lotWire, name string) *os.File { return os.NewFile(uintptr(w.fd), name) }
