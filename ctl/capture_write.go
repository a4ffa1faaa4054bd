package ctl

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/sockd/sockd/ctl/varlink"
	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/files"
)

// A capture to files runs like this. The daemon writes into descriptors that the
// caller opens with its own rights, and the caller names and deletes the files:
//
//	sockd-ctl ── Write ─────────────────────> sockd      one connection
//	          <── the capture ───────────────
//	          ── Supply(id), a descriptor ──>            another
//	          ── Supply(id), the next one ──>
//	          <── the first file is complete     (renames it)
//	          ── Supply(id), a descriptor ──>
//	Ctrl-C:   ── Close(id) ─────────────────>
//	          <── the last file is complete
//	          <── the capture, the last reply

const (
	writeMethod  = "io.sockd.Capture.Write"
	supplyMethod = "io.sockd.Capture.Supply"
)

type writeIn struct {
	captureIn
	Size  *int64       `json:"size,omitempty"`
	Every *int64       `json:"every,omitempty"`
	Zones []model.Zone `json:"zones,omitempty"`
	Files *int64       `json:"files,omitempty"`
}

// writeOut is one reply: first and last Capture, in between File or Note.
type writeOut struct {
	Capture *model.Capture `json:"capture,omitempty"`
	File    *fileOut       `json:"file,omitempty"`
	Note    *string        `json:"note,omitempty"`
}

// fileOut is a report, with its errno by name.
type fileOut struct {
	model.FileReport
	Errno *string `json:"errno,omitempty"`
}

func newFileOut(r model.FileReport) *fileOut {
	out := &fileOut{FileReport: r}
	if r.Errno != 0 {
		out.Errno = new(errnoName(r.Errno))
	}
	return out
}

type supplyIn struct {
	ID         model.ID `json:"id"`
	Descriptor int      `json:"descriptor"`
}

var _ = addMethod(method{name: writeMethod, in: writeIn{}, out: writeOut{}, more: true, serve: serveWrite})

var _ = addMethod(method{name: supplyMethod, in: supplyIn{}, out: struct{}{}, serve: serveSupply})

// files checks how files are to be cut, before anything is started.
func (in writeIn) files() (model.FileSpec, error) {
	spec := model.FileSpec{Size: orZero(in.Size), Every: time.Duration(orZero(in.Every)), Zones: in.Zones, Files: orZero(in.Files)}
	if orZero(in.Format) == model.FormatPcap && orZero(in.Comment) != "" {
		return spec, &families.SyntaxError{What: "comment", Text: *in.Comment, Why: "a pcap file has none"}
	}
	return spec, spec.Check()
}

func serveWrite(ctx context.Context, s *Server, c *varlink.ServerCall) error {
	var in writeIn
	if err := c.Decode(&in); err != nil {
		return err
	}
	cut, err := in.files()
	if err != nil {
		return err
	}
	capture, err := s.request(c).capture(ctx, in.captureIn)
	if err != nil {
		return err
	}
	defer capture.Close()
	v := capture.View()
	supplied := s.supplies.add(v.ID, c.Caller.UID)
	defer s.supplies.remove(v.ID)
	if err := c.Continue(writeOut{Capture: &v}); err != nil {
		return err
	}
	told := newTold(c)
	capture.Notes(told.note)
	err = capture.RunFiles(ctx, cut, supplied.next, func(r model.FileReport) error { return told.send(writeOut{File: newFileOut(r)}) })
	capture.Notes(nil)
	told.close()
	v = capture.View()
	if err != nil && !errors.Is(err, net.ErrClosed) { // somebody who has closed it is no failure
		_ = c.Continue(writeOut{Capture: &v}) // the error is said all the same
		return err
	}
	return c.Reply(writeOut{Capture: &v})
}

// told sends what a capture has to tell while it runs: notes come from goroutines that
// must not wait for the caller.
type told struct {
	mu     sync.Mutex // held while a reply is sent
	c      *varlink.ServerCall
	notes  chan string
	ended  chan struct{}
	teller sync.WaitGroup
}

// maxNotes bounds the notes that wait: more than that come of interfaces that come and go
// faster than anybody reads, and the rest is left out.
const maxNotes = 64

func newTold(c *varlink.ServerCall) *told {
	t := &told{c: c, notes: make(chan string, maxNotes), ended: make(chan struct{})}
	t.teller.Go(t.tell)
	return t
}

// note takes one in.
func (t *told) note(text string) {
	select {
	case t.notes <- text:
	default: // see maxNotes
	}
}

// tell sends notes until the end, and those from before it.
func (t *told) tell() {
	for {
		select {
		case text := <-t.notes:
			_ = t.send(writeOut{Note: &text}) // a caller who has left is no news: RunFiles hears of it
		case <-t.ended:
			for len(t.notes) > 0 {
				text := <-t.notes
				_ = t.send(writeOut{Note: &text}) // as above
			}
			return
		}
	}
}

func (t *told) send(out writeOut) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.c.Continue(out)
}

// close waits until all is sent.
func (t *told) close() {
	close(t.ended)
	t.teller.Wait()
}

func serveSupply(_ context.Context, s *Server, c *varlink.ServerCall) error {
	var in supplyIn
	if err := c.Decode(&in); err != nil {
		return err
	}
	fd, err := s.request(c).takeFile(&in.Descriptor)
	if err != nil {
		return err
	}
	err = files.Check(fd)
	if err == nil {
		err = s.supplies.give(in.ID, c.Caller.UID, fd)
	}
	if err != nil {
		closeFile(fd)
		return fmt.Errorf("supply a file to capture %d: %w", in.ID, err)
	}
	return c.Reply(nil)
}

// maxSupply is how many descriptors may wait for one capture: the next file's, and
// one more for who is slow to open them.
const maxSupply = 2

// supplies are the descriptors that wait for captures to files, by the captures' IDs.
type supplies struct {
	mu  sync.Mutex // guards all and what is in it
	all map[model.ID]*supply
}

// supply is what waits for one capture.
type supply struct {
	of      *supplies
	uid     uint32
	waiting []int
	more    chan struct{} // of capacity 1: something waits
}

func (s *supplies) add(id model.ID, uid uint32) *supply {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[model.ID]*supply{}
	}
	w := &supply{of: s, uid: uid, more: make(chan struct{}, 1)}
	s.all[id] = w
	return w
}

// remove closes what the capture had no use for.
func (s *supplies) remove(id model.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	closeAll(s.all[id].waiting)
	delete(s.all, id)
}

// give hands a descriptor over to a capture of the same user's. On success it is the
// capture's.
func (s *supplies) give(id model.ID, uid uint32, fd int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.all[id]
	switch {
	case w == nil:
		return families.ErrNotFound
	case w.uid != uid:
		return syscall.EPERM
	case len(w.waiting) == maxSupply:
		return fmt.Errorf("%d wait already: %w", maxSupply, syscall.EBUSY)
	}
	w.waiting = append(w.waiting, fd)
	select {
	case w.more <- struct{}{}:
	default: // next has not looked yet
	}
	return nil
}

// next waits for a descriptor, which is the caller's then.
func (w *supply) next(ctx context.Context) (int, error) {
	for {
		if fd, ok := w.take(); ok {
			return fd, nil
		}
		select {
		case <-w.more:
		case <-ctx.Done():
			return model.NoFD, context.Cause(ctx)
		}
	}
}

func (w *supply) take() (int, bool) {
	w.of.mu.Lock()
	defer w.of.mu.Unlock()
	if len(w.waiting) == 0 {
		return model.NoFD, false
	}
	fd := w.waiting[0]
	w.waiting = w.waiting[1:]
	return fd, true
}
