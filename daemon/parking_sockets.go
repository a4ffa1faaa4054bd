package daemon

import (
	"context"
	"encoding/binary"
	"fmt"
	"syscall"

	"github.com/sockd/sockd/daemon/park"
	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// Sockets of verbs that outlive the process. The kernel has all of them but whose they
// are, which is in the record; their counters begin anew, and pieces that came back and
// wait in front of a socket's queue are lost.

// parkedSocket is beside relay.ParkedRelay and relay.ParkedSession.
const parkedSocket park.Kind = 3

// socketRecord is the Data of a parked socket:
//
//	0 version  1 zero (3)  4 gid (4)  8 parent (8)
type socketRecord struct {
	gid    uint32
	parent model.ID
}

const (
	socketRecordVersion = 1
	socketRecordLen     = 16
)

func (r socketRecord) encode() []byte {
	b := make([]byte, socketRecordLen)
	b[0] = socketRecordVersion
	binary.LittleEndian.PutUint32(b[4:], r.gid)
	binary.LittleEndian.PutUint64(b[8:], uint64(r.parent))
	return b
}

// parseSocket reads the Data of a socket. What it accepts, encode writes.
func parseSocket(b []byte) (socketRecord, error) {
	if len(b) != socketRecordLen || b[0] != socketRecordVersion || b[1]|b[2]|b[3] != 0 {
		return socketRecord{}, fmt.Errorf("a socket: %w", park.ErrForeign)
	}
	return socketRecord{gid: binary.LittleEndian.Uint32(b[4:]), parent: model.ID(binary.LittleEndian.Uint64(b[8:]))}, nil
}

// errNothingHolds is what outlives the process where nothing holds descriptors for it.
var errNothingHolds = fmt.Errorf("durable: nothing here holds descriptors when sockd dies: run it by systemd or with --supervise: %w", families.ErrNotSupported)

// Keep makes a socket outlive this process, with what it accepts from now on. Twice is
// nil.
func (d *Daemon) Keep(ctx context.Context, c model.Caller, id model.ID) (model.Socket, error) {
	call, err := d.call(ctx, c, "keep", id)
	if err != nil {
		return model.Socket{}, err
	}
	defer call.end()
	if call.k.durable.Load() {
		return call.k.view(), nil
	}
	if err := d.parkSock(call.k); err != nil {
		return model.Socket{}, call.fail("", err)
	}
	return call.done("changed"), nil
}

// parkSock parks a socket under its ID.
func (d *Daemon) parkSock(k *sock) error {
	if d.opts.Parking == nil {
		return errNothingHolds
	}
	fd, err := families.As[families.Descriptor](k.s)
	if err != nil {
		return err
	}
	r := park.Record{Kind: parkedSocket, ID: uint64(k.id), UID: k.owner.UID, Data: socketRecord{k.owner.GID, k.parent}.encode()}
	if err := fd.Control(func(n int) error { return d.opts.Parking.Lots.Park(r, n) }); err != nil {
		return err
	}
	k.durable.Store(true)
	return nil
}

// unpark lets go of a socket that is about to end, or to be a relay's: its address would
// stay taken as long as a duplicate lives.
func (d *Daemon) unpark(k *sock) {
	if !k.durable.Load() {
		return
	}
	if err := d.opts.Parking.Lots.LeaveNow(uint64(k.id)); err != nil {
		d.log.Warn("what has ended stays parked", "id", k.id, "err", err)
	}
}

// inherit makes a connection as durable as the socket that accepted it.
func (d *Daemon) inherit(k, listener *sock) {
	if !listener.durable.Load() {
		return
	}
	if err := d.parkSock(k); err != nil {
		d.log.Warn("an accepted socket will end with sockd", "id", k.id, "err", err)
	}
}

// restoreSock puts a parked socket into the table. On error its descriptors stay the
// caller's.
func (d *Daemon) restoreSock(p park.Parked) error {
	r, err := parseSocket(p.Data)
	if err == nil && len(p.FDs) != 1 {
		err = fmt.Errorf("a socket of %d descriptors: %w", len(p.FDs), park.ErrForeign)
	}
	if err != nil {
		return err
	}
	domain, _, err := kindOfFD(p.FDs[0])
	if err != nil {
		return err
	}
	a, err := d.opts.Families.Domain(domain)
	if err != nil {
		return err
	}
	s, err := a.Adopt(p.FDs[0])
	if err != nil {
		return err
	}
	f, err := d.opts.Families.Family(s.Info().Family)
	if err != nil {
		return err // it was adopted, so there is one
	}
	k := newSock(model.ID(p.ID), model.Owner{UID: p.UID, GID: r.gid}, r.parent, f, s)
	k.durable.Store(true)
	d.KeepID(k.id)
	d.enterTable(k, "opened")
	return nil
}

// leaveBehind has a durable socket go on in the next process: closing it here removes no
// file.
func (k *sock) leaveBehind() {
	if f, err := families.As[families.FileKeeper](k.s); err == nil && k.durable.Load() {
		f.KeepFile()
	}
}

// closeFDs closes duplicates.
func closeFDs(fds []int) {
	for _, fd := range fds {
		_ = syscall.Close(fd) // whatever it was, another one is parked
	}
}
