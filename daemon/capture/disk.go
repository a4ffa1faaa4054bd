package capture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/files"
)

// disk keeps a recorder's packets in files, which it names and deletes; a subscription
// writes them.
type disk struct {
	spec model.DiskSpec
	sub  *Subscription
	task sync.WaitGroup // RunFiles
	stop context.CancelFunc

	turn  sync.Mutex // held while files are made, named and deleted; guards shelf and keep
	shelf *shelf
	keep  files.Keep

	mu    sync.Mutex   // guards what follows; locked after turn
	parts []unfinished // the first one is being written, the others are for later
	files []diskFile   // complete, the oldest first
	err   error        // why no more are written
}

// unfinished is a file on its way.
type unfinished struct {
	name string
	fd   int // NoFD once it is the subscription's
}

// diskFile is a file that is complete.
type diskFile struct {
	name           string
	bytes, packets int64
	first, last    int64 // times; 0: not known
}

var _ keeper = (*disk)(nil)

// minDisk is the least that all files of a recorder can be bound to.
const minDisk = 16 * model.MinFileSize

// newDisk makes the first file, so that who may not is told at once.
func newDisk(spec model.RecorderSpec) (*disk, error) {
	d := &disk{spec: *spec.Disk}
	var err error
	if d.shelf, err = newShelf(d.spec.To, d.spec.Count, spec.Owner); err != nil {
		return nil, err
	}
	d.keep = files.Keep{Count: d.spec.Count}
	if d.spec.MaxBytes > 0 { // the file that is being written counts, too
		if most := d.spec.MaxBytes / 4; d.spec.Size == 0 || d.spec.Size > most {
			d.spec.Size = most
		}
		d.keep.Bytes = d.spec.MaxBytes - d.spec.Size
	}
	if spec.Permanent || spec.SourceFile != "" { // it may have been here before
		for _, old := range d.shelf.resume(signature(spec)) {
			d.add(diskFile{name: old.name, bytes: old.size})
		}
	}
	if err := d.create(); err != nil {
		return nil, err
	}
	return d, nil
}

// checkDisk finds what no files can be. The error is a *families.SyntaxError.
func checkDisk(d *model.DiskSpec) error {
	if d == nil {
		return nil
	}
	if d.MaxBytes != 0 && d.MaxBytes < minDisk {
		return wrong("size of all files", model.FormatSize(d.MaxBytes), "want at least "+model.FormatSize(minDisk), "")
	}
	if _, err := files.NewPattern(d.To.Name(), d.Count); err != nil {
		return err
	}
	return fileSpec(*d).Check()
}

// fileSpec is how files are cut, by the daemon's clock on the wall.
func fileSpec(d model.DiskSpec) model.FileSpec {
	spec := model.FileSpec{Size: d.Size, Every: d.Every}
	for _, z := range files.Zones(time.Now(), time.Local) {
		spec.Zones = append(spec.Zones, model.Zone(z))
	}
	return spec
}

// start writes what sub takes in, until stop or the subscription's end. When it
// returns that has begun: a recording that is closed at once has what came before.
func (d *disk) start(sub *Subscription) {
	ctx, stop := context.WithCancel(context.Background())
	d.sub, d.stop = sub, stop
	ended := make(chan struct{})
	defer func() {
		select {
		case <-sub.entered:
		case <-ended:
		}
	}()
	d.task.Go(func() {
		defer close(ended)
		err := sub.RunFiles(ctx, fileSpec(d.spec), d.next, d.done)
		if err != nil && !errors.Is(err, net.ErrClosed) {
			d.fail(err)
		}
	})
}

// fail notes why the recording ends.
func (d *disk) fail(err error) {
	d.sub.say(err.Error())
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = err
}

// failure is why no more files are written, or nil.
func (d *disk) failure() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// create opens one more file.
func (d *disk) create() error {
	d.turn.Lock()
	defer d.turn.Unlock()
	name, fd, err := d.shelf.create()
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.parts = append(d.parts, unfinished{name, fd})
	return nil
}

// next gives the subscription a file. When there is none to be had the recording ends.
func (d *disk) next(context.Context) (int, error) {
	if fd := d.handOver(); fd != model.NoFD {
		return fd, nil
	}
	if err := d.create(); err != nil {
		d.fail(err)
		return model.NoFD, err
	}
	return d.handOver(), nil
}

// handOver takes the descriptor of a file that waits.
func (d *disk) handOver() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.parts {
		if fd := d.parts[i].fd; fd != model.NoFD {
			d.parts[i].fd = model.NoFD
			return fd
		}
	}
	return model.NoFD
}

// done names a file that is complete, and deletes those that are too many.
func (d *disk) done(r model.FileReport) error {
	if r.Reason == "error" {
		return nil // it is not complete yet; the subscription has told of it
	}
	d.turn.Lock()
	defer d.turn.Unlock()
	d.mu.Lock()
	part := d.parts[0].name
	d.mu.Unlock()
	if r.Bytes == 0 { // the disk had no room for its beginning: readers take no empty file
		return d.abandon(part)
	}
	name, err := d.shelf.place(part, r.Begun.Local())
	if err != nil {
		d.fail(err)
		return err
	}
	d.mu.Lock()
	d.parts = d.parts[1:]
	d.mu.Unlock()
	d.add(diskFile{name, r.Bytes, r.Packets, nanoseconds(r.First), nanoseconds(r.Last)})
	return nil
}

// abandon deletes the file that is being written; turn is held.
func (d *disk) abandon(part string) error {
	d.mu.Lock()
	d.parts = d.parts[1:]
	d.mu.Unlock()
	if err := d.shelf.remove(part); err != nil {
		d.tell(err)
	}
	return nil
}

func nanoseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// add takes a complete file in; turn is held.
func (d *disk) add(f diskFile) {
	gone := d.keep.Add(f.name, f.bytes)
	d.mu.Lock()
	d.files = slices.DeleteFunc(d.files, func(o diskFile) bool { return o.name == f.name || slices.Contains(gone, o.name) })
	d.files = append(d.files, f)
	d.mu.Unlock()
	for _, name := range gone {
		if err := d.shelf.remove(name); err != nil {
			d.tell(err)
		}
		d.shelf.forget(name)
	}
}

// tell tells of an error that ends nothing.
func (d *disk) tell(err error) {
	if d.sub != nil {
		d.sub.say(err.Error())
	}
}

func (d *disk) held() held {
	d.mu.Lock()
	defer d.mu.Unlock()
	h := held{files: int64(len(d.files)), bounds: bounds{bytes: d.spec.MaxBytes}}
	if h.bounds.bytes == 0 {
		h.bounds.bytes = d.spec.Size * int64(d.spec.Count)
	}
	for _, f := range d.files {
		h.packets += f.packets
		h.bytes += f.bytes
		if h.oldest == 0 {
			h.oldest = f.first
		}
		h.newest = max(h.newest, f.last)
	}
	return h
}

// sweep has nothing to do: files are bound when they come.
func (d *disk) sweep(int64) {}

// close waits until the last file is complete, and forgets those that were not begun.
func (d *disk) close() {
	if d.stop != nil {
		d.task.Wait()
		d.stop()
	}
	d.turn.Lock()
	defer d.turn.Unlock()
	d.mu.Lock()
	parts := d.parts
	d.parts = nil
	d.mu.Unlock()
	for _, p := range parts {
		if p.fd != model.NoFD {
			files.Discard(p.fd)
		}
		_ = d.shelf.remove(p.name) // it is empty; the next start looks at it again
	}
}

// dump reads the files back, what is written of the one under way included.
func (d *disk) dump(ctx context.Context, w io.Writer, c choice) (dumpReport, error) {
	d.settle(ctx)
	list, current, err := d.open(c.from)
	if err != nil {
		return dumpReport{}, err
	}
	if current != nil {
		defer current.Close() // read-only
	}
	r := newRefill(ctx, w, c)
	defer r.close()
	for _, f := range list {
		if err := d.read(r, f); err != nil {
			return dumpReport{}, err
		}
	}
	if current != nil {
		if err := r.file(current); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) { // it is being written
			return dumpReport{}, d.shelf.explain("read back", current.Name(), err)
		}
	}
	return r.finish()
}

// settle waits until what has come through the rings is written.
func (d *disk) settle(ctx context.Context) {
	for most := time.Now().Add(catchUpMost); ctx.Err() == nil && time.Now().Before(most); {
		v := d.sub.View()
		if v.Delivered+v.DroppedDaemon+v.DroppedSubscriber >= v.Received || d.failure() != nil {
			return
		}
		time.Sleep(settleStep)
	}
}

// open lists the files that may have packets from the time from on, and opens the one
// that is being written, while it has that name.
func (d *disk) open(from int64) (list []diskFile, current *os.File, err error) {
	d.turn.Lock()
	defer d.turn.Unlock()
	d.mu.Lock()
	for _, f := range d.files {
		if f.last == 0 || f.last >= from {
			list = append(list, f)
		}
	}
	parts := slices.Clone(d.parts)
	d.mu.Unlock()
	if len(parts) == 0 {
		return list, nil, nil
	}
	current, err = d.shelf.open(parts[0].name)
	return list, current, err
}

// read reads one complete file; one that was deleted meanwhile is passed over.
func (d *disk) read(r *refill, f diskFile) error {
	file, err := d.shelf.open(f.name)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	defer file.Close() // read-only
	err = r.file(file)
	if errors.Is(err, io.ErrUnexpectedEOF) && f.packets == 0 {
		return nil // left by a daemon that was killed
	}
	if err != nil {
		return fmt.Errorf("read back %s: %w", families.Printable(d.shelf.shown+f.name), err)
	}
	return nil
}
