package main

import (
	"context"
	"errors"
	"log/slog"
	"syscall"
	"time"

	"github.com/sockd/sockd/daemon"
	"github.com/sockd/sockd/daemon/park"
	"github.com/sockd/sockd/systemd"
)

// parkTime bounds the wait for the service manager to say that it holds the parking
// lots: PID 1 answers within milliseconds, and one that does not must not keep sockd
// from serving.
const parkTime = 10 * time.Second

// openParking takes the parking lots out of files and opens them. The rest of the files
// are the caller's. Without a manager that holds lots there is no parking: nil.
func openParking(log *slog.Logger, notify *systemd.Notifier, files []systemd.File) (p *daemon.Parking, rest []systemd.File) {
	var lots []park.File
	for _, f := range files {
		if park.Stored(f.Name) {
			lots = append(lots, park.File{Name: f.Name, FD: f.FD})
		} else {
			rest = append(rest, f)
		}
	}
	if !notify.Enabled() {
		return nil, files // lots of nobody's: they are named descriptors like all others
	}
	p, err := parkingOf(notify, lots)
	if err != nil && len(lots) > 0 {
		// Lots that nobody can read hold addresses that relays want.
		log.Error("what was parked is lost", "err", err)
		for _, f := range lots {
			err = errors.Join(err, notify.Remove(f.Name))
		}
		p, err = parkingOf(notify, nil)
	}
	if err != nil {
		log.Error("nothing outlives this process", "err", err)
		return nil, rest
	}
	return p, rest
}

func parkingOf(notify *systemd.Notifier, lots []park.File) (*daemon.Parking, error) {
	ctx, cancel := context.WithTimeout(context.Background(), parkTime)
	defer cancel()
	p := &daemon.Parking{}
	var err error
	p.Lots, p.Back, err = park.Open(ctx, notify, lots, func(e park.Event) { p.Refused = append(p.Refused, e) })
	if err != nil {
		return nil, err
	}
	return p, nil
}

// closeParking closes what no daemon has taken. All stays parked.
func closeParking(p *daemon.Parking) error {
	if p == nil {
		return nil
	}
	for _, b := range p.Back {
		for _, fd := range b.FDs {
			_ = syscall.Close(fd) // a duplicate
		}
	}
	return p.Lots.Close()
}
