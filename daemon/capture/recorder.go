package capture

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/files"
	"github.com/sockd/sockd/families/packet/pcapng"
)

// Recorders have a hub's rings keep what is asked for later. Methods may be called from
// any goroutine.
type Recorders struct {
	hub   *Hub
	slots chan struct{} // one for each dump that is being written
	most  int64         // bytes that all may be bound to together

	mu       sync.Mutex // guards promised
	promised int64      // bytes that they are bound to
}

// maxDumps bounds the dumps that are written at once: each has half a megabyte of
// buffers and a core's work, and recording comes first. More wait their turn.
const maxDumps = 8

// NewRecorders makes recorders that use h's rings.
func NewRecorders(h *Hub) *Recorders {
	return &Recorders{hub: h, slots: make(chan struct{}, maxDumps), most: mostMemory()}
}

// mostMemory is half of the machine's: who asks for more would have the kernel end the
// daemon, with all that it does for others, when the packets come.
func mostMemory() int64 {
	var info syscall.Sysinfo_t
	if err := syscall.Sysinfo(&info); err != nil {
		return math.MaxInt64 // it cannot fail: sysinfo(2)
	}
	return int64(info.Totalram) * int64(info.Unit) / 2
}

// promise sets so many more bytes aside for a recorder, or so many less.
func (rs *Recorders) promise(name string, more int64) error {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if more > 0 && more > rs.most-rs.promised {
		return fmt.Errorf("recorder %s: of %d bytes for all recorders %d are taken, and it wants %d: %w", families.Printable(name), rs.most, rs.promised, more, syscall.ENOMEM)
	}
	rs.promised += more
	return nil
}

// Recorder keeps the last packets of a source. Its methods may be called from any
// goroutine.
type Recorder struct {
	all     *Recorders
	spec    model.RecorderSpec // but for what Set changes, which mu guards
	sub     *Subscription
	store   keeper
	trigger *trigger
	shelf   *shelf // where the trigger's dumps go; await's
	told    func(event, cause string)

	once  sync.Once // closes what it owns
	stop  context.CancelFunc
	tasks sync.WaitGroup // what sweeps, and what dumps

	mu    sync.Mutex // guards what follows
	last  time.Duration
	bytes int64
	dumps int64
	cause string
}

// keeper is what a recorder's packets are kept by.
type keeper interface {
	// held is what there is.
	held() held
	// dump writes what there is of a choice.
	dump(ctx context.Context, w io.Writer, c choice) (dumpReport, error)
	// sweep forgets what is too old at the time now.
	sweep(now int64)
	// close ends it. The subscription has ended.
	close()
}

var _ keeper = (*history)(nil)

// Add starts a recorder of spec, whose interfaces need not be there yet. told is called, from
// other goroutines, with what happens to it, "dumped" or "changed"; it must not call the recorder's
// methods but View. On success the recorder owns the descriptors of spec's Places.
//
// Errors: those of Hub.Subscribe, and *families.SyntaxError of what does not fit
// together.
func (rs *Recorders) Add(spec model.RecorderSpec, told func(event, cause string)) (*Recorder, error) {
	if err := CheckRecorder(spec); err != nil {
		return nil, err
	}
	r := &Recorder{all: rs, spec: spec, told: told, last: spec.Last, bytes: spec.Bytes}
	if spec.Trigger.Set() {
		shelf, err := newShelf(spec.Trigger.To, 0, spec.Owner)
		if err != nil {
			return nil, err
		}
		r.shelf = shelf
		r.trigger = newTrigger(spec.Trigger.Filter, uint64(spec.Trigger.OnDrop), quietTime(spec))
	}
	if err := rs.promise(spec.Name, memoryOf(spec)); err != nil {
		return nil, err
	}
	if err := r.begin(); err != nil {
		_ = rs.promise(spec.Name, -memoryOf(spec)) // giving back never fails
		return nil, err
	}
	r.sub.Tell(func(cause string) { r.tell("changed", cause) })
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	r.tasks.Go(func() { r.sweep(ctx) })
	if r.trigger != nil {
		r.tasks.Go(func() { r.await(ctx) })
	}
	return r, nil
}

// begin starts the subscription, into memory or to disk.
func (r *Recorder) begin() error {
	if r.spec.Disk == nil {
		h := newHistory(boundsOf(r.spec), r.trigger)
		sub, err := r.all.hub.subscribe(captureOf(r.spec), func(*Subscription) store { return h })
		if err != nil {
			h.close()
			return err
		}
		r.sub, r.store = sub, h
		return nil
	}
	d, err := newDisk(r.spec)
	if err != nil {
		return err
	}
	sub, err := r.all.hub.Subscribe(captureOf(r.spec))
	if err != nil {
		d.close()
		return err
	}
	d.start(sub)
	r.sub, r.store = sub, d
	return nil
}

// captureOf is the capture of a recorder.
func captureOf(spec model.RecorderSpec) model.CaptureSpec {
	return model.CaptureSpec{
		Source: spec.Source, Filter: spec.Filter, Direction: spec.Direction, Snaplen: spec.Snaplen, NoPromisc: spec.NoPromisc, Wait: true,
		Comment: signature(spec),
	}
}

// signature is the comment of a recorder's files, by which it knows them again.
func signature(spec model.RecorderSpec) string { return files.Signature(spec.Name) }

// boundsOf are the bounds of a recorder's history. What a trigger's dump has from
// after it must not push out what it has from before.
func boundsOf(spec model.RecorderSpec) bounds {
	b := bounds{last: spec.Last, bytes: spec.Bytes}
	if b.last > 0 {
		b.last += spec.Trigger.After
	}
	if b.bytes == 0 {
		b.bytes = model.DefaultRecorderBytes
	}
	return b
}

// memoryOf is what a recorder may take.
func memoryOf(spec model.RecorderSpec) int64 {
	if spec.Disk != nil {
		return 0
	}
	return boundsOf(spec).bytes
}

// leastQuiet is the least time between two dumps of a trigger.
const leastQuiet = 10 * time.Second

// quietTime is the time between two dumps of a trigger: what they have does not
// overlap, and a recorder without an age does not write without end.
func quietTime(spec model.RecorderSpec) time.Duration {
	return max(leastQuiet, spec.Last+spec.Trigger.After)
}

// CheckRecorder tells what is wrong with a specification, whatever interfaces there are. The
// error is a *families.SyntaxError.
func CheckRecorder(spec model.RecorderSpec) error {
	if _, err := check(captureOf(spec)); err != nil {
		return err
	}
	if _, err := newJudge(spec.Filter, pcapng.Ethernet, anyMask); err != nil {
		return err
	}
	if _, err := keptProgram(spec.Trigger.Filter, pcapng.Ethernet); err != nil {
		return err
	}
	switch {
	case spec.Disk == nil && spec.Last == 0 && spec.Bytes == 0:
		return wrong("recorder", spec.Source, "it has no bound", "--last 30s, --bytes 64M or -w FILE")
	case spec.Disk != nil && (spec.Last != 0 || spec.Bytes != 0):
		return wrong("recorder", cmp.Or(spec.Name, spec.Source), "it is either in memory or in files", "-C SIZE, -G SECONDS, -W COUNT and --max-bytes bound files")
	case spec.Last < 0 || spec.Last > maxLast:
		return wrong("last", model.FormatDuration(spec.Last), "want more than 0 and at most "+model.FormatDuration(maxLast), "")
	case spec.Bytes != 0 && spec.Bytes < model.MinRecorderBytes:
		return wrong("bytes", model.FormatSize(spec.Bytes), "want at least "+model.FormatSize(model.MinRecorderBytes), "")
	}
	if err := checkDisk(spec.Disk); err != nil {
		return err
	}
	return checkTrigger(spec)
}

// anyMask stands for that of an interface which need not be there yet: Subscribe knows better.
const anyMask = 0xffffff00

// maxLast keeps sums of times within their range.
const maxLast = 365 * 24 * time.Hour

func checkTrigger(spec model.RecorderSpec) error {
	t := spec.Trigger
	switch {
	case t.OnDrop < 0:
		return wrong("drops", fmt.Sprint(t.OnDrop), "want a number from 1", "")
	case t.After < 0 || t.After > maxLast:
		return wrong("after", model.FormatDuration(t.After), "want at most "+model.FormatDuration(maxLast), "")
	case t.Set() && t.To.Path == "":
		return wrong("trigger", spec.Source, "there is no file for what it dumps", "--dump-to FILE")
	case !t.Set() && t.To.Path != "":
		return wrong("dump file", t.To.Path, "there is no trigger", "--trigger FILTER or --on-drop N")
	case !t.Set() && t.After != 0:
		return wrong("after", model.FormatDuration(t.After), "there is no trigger that it could follow", "--trigger FILTER or --on-drop N")
	case t.Set() && spec.Disk != nil:
		return wrong("trigger", spec.Source, "what is in files already is not dumped again", "")
	case t.Set():
		_, err := files.NewPattern(t.To.Name(), 0)
		return err
	}
	return nil
}

func wrong(what, text, why, hint string) error {
	return &families.SyntaxError{What: what, Text: text, Why: why, Hint: hint}
}

// tell notes what has happened, and passes it on.
func (r *Recorder) tell(event, cause string) {
	r.mu.Lock()
	r.cause = cause
	r.mu.Unlock()
	r.told(event, cause)
}

// sweepTime is how often what is too old is looked for where nothing comes.
const sweepTime = time.Second

// sweep forgets what is too old, until the recorder is closed.
func (r *Recorder) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepTime)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			r.store.sweep(now.UnixNano())
		}
	}
}

// await dumps each time that the trigger fires, until the recorder is closed.
func (r *Recorder) await(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case f := <-r.trigger.fired:
			r.dumpFired(ctx, f)
		}
	}
}

// dumpFired makes the file of one trigger, and tells of it.
func (r *Recorder) dumpFired(ctx context.Context, f firing) {
	after := r.spec.Trigger.After
	ripe := time.NewTimer(min(after, time.Until(time.Unix(0, f.time).Add(after))))
	defer ripe.Stop()
	select {
	case <-ctx.Done():
		return
	case <-ripe.C:
	}
	name, report, err := r.dumpFile(ctx, f)
	switch {
	case ctx.Err() != nil: // the recorder is being closed
	case err != nil:
		r.tell("changed", fmt.Sprintf("%s, and could not be dumped: %v", f.cause, err))
	default:
		r.tell("dumped", fmt.Sprintf("%s: dumped %d packets to %s", f.cause, report.Packets, families.Escape(name)))
	}
}

// dumpFile writes what belongs to one trigger into a file, which has its name once it
// is complete.
func (r *Recorder) dumpFile(ctx context.Context, f firing) (name string, report model.DumpReport, err error) {
	part, fd, err := r.shelf.create()
	if err != nil {
		return "", model.DumpReport{}, err
	}
	file := os.NewFile(uintptr(fd), part)
	report, err = r.dump(ctx, r.choiceOf(f), file)
	if err == nil {
		err = file.Sync() // or a crash could leave the name, and nothing in it
	}
	if err = errors.Join(err, file.Close()); err == nil {
		name, err = r.shelf.place(part, time.Unix(0, f.time))
	}
	if err != nil {
		return "", model.DumpReport{}, errors.Join(err, r.shelf.remove(part))
	}
	return r.shelf.shown + name, report, nil
}

// choiceOf is what a trigger's dump has.
func (r *Recorder) choiceOf(f firing) choice {
	c := choice{from: math.MinInt64, to: f.time + int64(r.spec.Trigger.After), bound: math.MinInt64}
	if last := r.Spec().Last; last > 0 {
		c.from = f.time - int64(last)
	}
	return c
}

// View is the recorder as it stands; the daemon adds what it is called and whose it is.
func (r *Recorder) View() model.Recorder {
	c, h := r.sub.View(), r.store.held()
	r.mu.Lock()
	defer r.mu.Unlock()
	v := model.Recorder{
		Source: c.Source, Filter: c.Filter, State: model.RecorderRecording, Cause: r.cause,
		HeldPackets: h.packets, HeldBytes: h.bytes, LimitBytes: h.bounds.bytes, Last: r.last,
		Oldest: timeOf(h.oldest), Newest: timeOf(h.newest), EvictedEarly: h.early,
		Received: c.Received, DroppedKernel: c.DroppedKernel, DroppedDaemon: c.DroppedDaemon, DroppedSubscriber: c.DroppedSubscriber,
		Dumps: r.dumps, Files: h.files,
	}
	if !r.sub.present() {
		v.State = model.RecorderWaiting
	}
	if r.trigger != nil {
		v.Suppressed = r.trigger.suppressed.Load()
	}
	if d, ok := r.store.(*disk); ok && d.failure() != nil {
		v.State = model.RecorderFailed
	}
	return v
}

// begun is when the subscription began, in nanoseconds since 1970.
func (s *Subscription) begun() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.start
}

// present tells whether any interface of the source is there.
func (s *Subscription) present() bool {
	return slices.ContainsFunc(s.space.now.Load().list, func(i *iface) bool { return s.source.matches(i.name) })
}

// timeOf is a time in nanoseconds since 1970, 0 standing for none.
func timeOf(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}

// Spec is what the recorder runs by, with what Set has changed.
func (r *Recorder) Spec() model.RecorderSpec {
	r.mu.Lock()
	defer r.mu.Unlock()
	spec := r.spec
	spec.Last, spec.Bytes, spec.Filter = r.last, r.bytes, r.sub.View().Filter
	return spec
}

// Set changes the filter and the bounds. What the new bounds still hold stays. On
// error nothing has changed.
func (r *Recorder) Set(change model.RecorderChange) error {
	spec := r.Spec()
	if change.Last != nil {
		spec.Last = *change.Last
	}
	if change.Bytes != nil {
		spec.Bytes = *change.Bytes
	}
	if err := CheckRecorder(spec); err != nil {
		return err
	}
	more := memoryOf(spec) - memoryOf(r.Spec())
	if err := r.all.promise(spec.Name, more); err != nil {
		return err
	}
	if change.Filter != nil {
		if err := r.sub.SetFilter(*change.Filter); err != nil {
			_ = r.all.promise(spec.Name, -more) // giving back never fails, and what was there before is there
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last, r.bytes = spec.Last, spec.Bytes
	if r.trigger != nil {
		r.sub.mu.Lock()
		r.trigger.window = quietTime(spec)
		r.sub.mu.Unlock()
	}
	if h, ok := r.store.(*history); ok {
		h.setBounds(boundsOf(spec))
	}
	return nil
}

// Dump writes what the recorder has to w as pcapng: of the time that spec says, and of
// that what its filter takes. The recording goes on meanwhile, and loses nothing by it. ctx
// ends it between two writes of a quarter of a megabyte.
//
// Errors: *families.SyntaxError of the filter; one wrapping families.ErrBusy while
// earlier dumps hold too much memory; w's.
func (r *Recorder) Dump(ctx context.Context, spec model.DumpSpec, w io.Writer) (model.DumpReport, error) {
	now := time.Now().UnixNano()
	c := choice{from: math.MinInt64, to: now, filter: spec.Filter, bound: math.MinInt64}
	if last := r.Spec().Last; last > 0 { // memory may have older ones: it is given back in large pieces
		c.from, c.bound = now-int64(last), now-int64(last)
	}
	if spec.Last > 0 {
		c.from = max(c.from, now-int64(spec.Last))
	}
	if _, err := keptProgram(spec.Filter, pcapng.Ethernet); err != nil {
		return model.DumpReport{}, err
	}
	return r.dump(ctx, c, w)
}

// dump writes a choice, when it is its turn and the packets have come.
func (r *Recorder) dump(ctx context.Context, c choice, w io.Writer) (model.DumpReport, error) {
	select {
	case r.all.slots <- struct{}{}:
	case <-ctx.Done():
		return model.DumpReport{}, fmt.Errorf("dump: %w", context.Cause(ctx))
	}
	defer func() { <-r.all.slots }()
	if err := r.sub.catchUpWith(ctx); err != nil {
		return model.DumpReport{}, fmt.Errorf("dump: %w", err)
	}
	v := r.View()
	c.source, c.recorded, c.begun = v.Source, v.Filter, r.sub.begun()
	c.comment = fmt.Sprintf("dropped_kernel=%d dropped_daemon=%d dropped_subscriber=%d", v.DroppedKernel, v.DroppedDaemon, v.DroppedSubscriber)
	report, err := r.store.dump(ctx, w, c)
	if err != nil {
		return model.DumpReport{}, err
	}
	r.mu.Lock()
	r.dumps++
	r.mu.Unlock()
	return report.model(), nil
}

func (d dumpReport) model() model.DumpReport {
	return model.DumpReport{Packets: d.packets, Bytes: d.bytes, Dropped: d.dropped, First: timeOf(d.first), Last: timeOf(d.last), Oldest: timeOf(d.oldest)}
}

// catchUpMost bounds catchUpWith where rings never run empty: there blocks fill, and
// are handed over, in less.
const catchUpMost = 10 * settleFirst

// catchUpWith waits until packets from before this moment have come through the rings.
func (s *Subscription) catchUpWith(ctx context.Context) error {
	most := time.NewTimer(catchUpMost)
	defer most.Stop()
	step := time.NewTimer(settleFirst)
	defer step.Stop()
	for {
		select {
		case <-step.C:
			if s.idle() {
				return nil
			}
			step.Reset(settleStep)
		case <-most.C:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Close ends the recorder and forgets what it has in memory. Dumps under way are
// completed. Twice is nil.
func (r *Recorder) Close() error {
	r.stop()
	r.tasks.Wait()
	err := r.sub.Close()
	r.store.close()
	r.once.Do(func() {
		_ = r.all.promise("", -memoryOf(r.Spec())) // giving back never fails
		closePlace(r.spec.Trigger.To)
		if r.spec.Disk != nil {
			closePlace(r.spec.Disk.To)
		}
	})
	return err
}
