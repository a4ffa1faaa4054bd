package park

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/sockd/sockd/families/familytest"
)

// A holder is a Store that holds duplicates, as PID 1 does.
type holder struct {
	tb      testing.TB
	held    map[string][]int
	fail    error // what Store says
	barrier int   // calls
}

func newHolder(tb testing.TB) *holder {
	tb.Helper()
	h := &holder{tb: tb, held: map[string][]int{}}
	tb.Cleanup(func() {
		for name := range h.held {
			require.NoError(tb, h.Remove(name))
		}
	})
	return h
}

func (h *holder) Store(name string, fds ...int) error {
	if h.fail != nil {
		return h.fail
	}
	for _, fd := range fds {
		h.held[name] = append(h.held[name], mustDup(h.tb, fd))
	}
	return nil
}

func (h *holder) Remove(name string) error {
	closeAll(h.held[name])
	delete(h.held, name)
	return nil
}

func (h *holder) Barrier(context.Context) error { h.barrier++; return nil }

// files are duplicates of all that is held, in an order nobody can rely on.
func (h *holder) files() (files []File) {
	for name, fds := range h.held {
		for i := range fds {
			files = append(files, File{name, mustDup(h.tb, fds[len(fds)-1-i])})
		}
	}
	return files
}

func mustDup(tb testing.TB, fd int) int {
	tb.Helper()
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	require.NoError(tb, err)
	return dup
}

// small lots are turned over all the time: 43 messages fit into one.
var small = settings{count: 2, buffer: 16 << 10}

// mustOpen opens and expects nothing untoward.
func (h *holder) mustOpen(s settings) (*Parking, []Parked) {
	h.tb.Helper()
	p, back, events := h.open(s)
	require.Empty(h.tb, events)
	return p, back
}

func (h *holder) open(s settings) (*Parking, []Parked, []Event) {
	h.tb.Helper()
	var events []Event
	p, back, err := open(h.tb.Context(), h, h.files(), func(e Event) { events = append(events, e) }, s)
	require.NoError(h.tb, err)
	h.tb.Cleanup(func() { require.NoError(h.tb, p.Close()) })
	return p, back, events
}

// mustPipe returns a pipe that holds text, nobody else's.
func mustPipe(tb testing.TB, text string) []int {
	tb.Helper()
	p := make([]int, 2)
	require.NoError(tb, unix.Pipe2(p, unix.O_CLOEXEC|unix.O_NONBLOCK))
	_, err := unix.Write(p[1], []byte(text))
	require.NoError(tb, err)
	return p
}

// mustPark parks a pipe that holds text, and closes it here.
func (h *holder) mustPark(p *Parking, id uint64, text string) {
	h.tb.Helper()
	fds := mustPipe(h.tb, text)
	defer closeAll(fds)
	require.NoError(h.tb, p.Park(Record{Kind: 1, ID: id, UID: 7, Data: []byte(text)}, fds...))
}

func (h *holder) mustReplace(p *Parking, id uint64, text string) {
	h.tb.Helper()
	fds := mustPipe(h.tb, text)
	defer closeAll(fds)
	require.NoError(h.tb, p.Replace(Record{Kind: 2, ID: id, UID: 7, Data: []byte(text)}, fds...))
}

// texts says what came back, from the pipes and not from the records, and closes
// it. The pipes keep their bytes.
func texts(tb testing.TB, back []Parked) map[uint64]string {
	tb.Helper()
	m := map[uint64]string{}
	for _, b := range back {
		require.NotContains(tb, m, b.ID, "it came back twice")
		m[b.ID] = mustLook(tb, b.FDs[0])
		require.Equal(tb, string(b.Data), m[b.ID], "the record and its pipe belong together")
		closeAll(b.FDs)
	}
	return m
}

// mustLook reads a pipe by way of tee(2), which takes nothing out.
func mustLook(tb testing.TB, fd int) string {
	tb.Helper()
	var p [2]int
	require.NoError(tb, unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK))
	defer closeAll(p[:])
	_, err := unix.Tee(fd, p[1], 4096, unix.SPLICE_F_NONBLOCK)
	require.NoError(tb, err)
	b := make([]byte, 4096)
	n, err := unix.Read(p[0], b)
	require.NoError(tb, err)
	return string(b[:n])
}

func TestWhatIsParkedComesBackWithItsBytes(t *testing.T) {
	familytest.NoLeaks(t)
	h := newHolder(t)
	p, back := h.mustOpen(small)
	require.Empty(t, back)
	require.Len(t, h.held, 2)
	require.Equal(t, 1, h.barrier, "nothing is parked before the store has the lots")

	h.mustPark(p, 3, "three")
	h.mustPark(p, 4, "four")
	h.mustPark(p, 5, "five")
	h.mustReplace(p, 4, "four with a backend")
	require.NoError(t, p.Leave(3))
	require.NoError(t, p.Close())

	_, back = h.mustOpen(small)
	require.Equal(t, 1, h.barrier, "the lots that came back are stored already")
	require.Len(t, back, 2)
	require.Equal(t, Kind(2), back[0].Kind)
	require.Equal(t, uint32(7), back[0].UID)
	require.Greater(t, back[0].Generation, back[1].Generation, "it was parked later")
	require.Equal(t, map[uint64]string{4: "four with a backend", 5: "five"}, texts(t, back))
}

func TestCallsThatMakeNoSense(t *testing.T) {
	familytest.NoLeaks(t)
	h := newHolder(t)
	p, _ := h.mustOpen(small)
	fd := mustPipe(t, "x")
	defer closeAll(fd)
	require.NoError(t, p.Park(Record{Kind: 1, ID: 1}, fd...))
	for name, tt := range map[string]struct {
		err  error
		want error
		says string
	}{
		"parked twice":            {p.Park(Record{Kind: 1, ID: 1}, fd...), errParked, "park 1: already parked"},
		"replaced and not parked": {p.Replace(Record{Kind: 1, ID: 2}, fd...), ErrNotParked, "replace 2: not parked"},
		"left and not parked":     {p.Leave(2), ErrNotParked, "leave 2: not parked"},
		"a closed descriptor":     {p.Park(Record{Kind: 1, ID: 2}, -1), unix.EBADF, "park 2: "},
		"no kind":                 {p.Park(Record{ID: 2}), nil, "park 2: kind 0 is no kind"},
		"too much data":           {p.Park(Record{Kind: 1, ID: 2, Data: make([]byte, MaxData+1)}), nil, "157 bytes of data, 156 is the most"},
		"too many descriptors":    {p.Replace(Record{Kind: 1, ID: 1}, make([]int, 9)...), nil, "9 descriptors, 8 is the most"},
	} {
		require.ErrorContains(t, tt.err, tt.says, name)
		if tt.want != nil {
			require.ErrorIs(t, tt.err, tt.want, name)
		}
	}
	require.Equal(t, 1, p.Use().Parked)
	require.NoError(t, p.Close())
	require.NoError(t, p.Close(), "twice")
	require.ErrorIs(t, p.Park(Record{Kind: 1, ID: 9}), os.ErrClosed)
	require.ErrorIs(t, p.Replace(Record{Kind: 1, ID: 1}), os.ErrClosed)
	require.ErrorIs(t, p.Leave(1), os.ErrClosed)
}

func TestAnIDThatLeftMayComeAgain(t *testing.T) {
	familytest.NoLeaks(t)
	h := newHolder(t)
	p, _ := h.mustOpen(small)
	h.mustPark(p, 1, "stays at the head")
	for i := range 20 {
		h.mustPark(p, 3, fmt.Sprint("life ", i))
		require.NoError(t, p.Leave(3))
	}
	h.mustPark(p, 3, "the last life")
	require.NoError(t, p.Close())
	_, back := h.mustOpen(small)
	require.Equal(t, map[uint64]string{1: "stays at the head", 3: "the last life"}, texts(t, back))
}

// TestTheDeadStayAFew is the turning over: long sessions sit still while thousands
// come and go.
func TestTheDeadStayAFew(t *testing.T) {
	familytest.NoLeaks(t)
	h := newHolder(t)
	p, _ := h.mustOpen(small)
	want := map[uint64]string{}
	for id := range uint64(20) {
		want[id] = fmt.Sprint("long ", id)
		h.mustPark(p, id, want[id])
	}
	most := 0
	for i := range uint64(2000) {
		h.mustPark(p, 100+i, "short")
		h.mustReplace(p, 100+i, "short with a backend")
		require.NoError(t, p.Leave(100+i))
		most = max(most, p.Use().Messages-p.Use().Parked)
	}
	u := p.Use()
	require.Equal(t, 20, u.Parked)
	require.LessOrEqual(t, most, u.MessageBound/2, "dead messages of %d", u.MessageBound)
	require.Equal(t, 2*u.Messages-gonesIn(p), u.Descriptors)
	require.NotZero(t, u.Turned)
	require.Zero(t, u.Stuck)
	require.NoError(t, p.Close())
	_, back := h.mustOpen(small)
	require.Equal(t, want, texts(t, back))
}

// gonesIn counts the descriptors that messages of no descriptors lack.
func gonesIn(p *Parking) (n int) {
	for _, l := range p.lots {
		for _, s := range l.queue {
			n += 2 - int(s.fds)
		}
	}
	return n
}

// TestALotThatIsFull fills all lots, and then does with the full ones whatever
// may be done.
func TestALotThatIsFull(t *testing.T) {
	familytest.NoLeaks(t)
	h := newHolder(t)
	p, _ := h.mustOpen(small)
	bound := p.Use().Bound
	want := map[uint64]string{}
	for id := range uint64(bound) {
		want[id] = fmt.Sprint("session ", id)
		h.mustPark(p, id, want[id])
	}
	err := p.Park(Record{Kind: 1, ID: 1000})
	require.ErrorIs(t, err, ErrFull)
	require.ErrorContains(t, err, fmt.Sprintf("park 1000: parking lot is full: %d of %d records; net.core.wmem_max raises it", bound, bound))
	require.Equal(t, uint64(1), p.Use().Full)

	for i := range uint64(1000) { // nothing of this needs more room than there is
		id := i * 7 % uint64(bound)
		want[id] = fmt.Sprint("changed ", i)
		h.mustReplace(p, id, want[id])
	}
	for i := range uint64(1000) {
		id := i * 5 % uint64(bound)
		require.NoError(t, p.Leave(id))
		want[id] = fmt.Sprint("anew ", i)
		h.mustPark(p, id, want[id])
	}
	require.Zero(t, p.Use().Stuck)
	require.NoError(t, p.Close())
	_, back := h.mustOpen(small)
	require.Equal(t, want, texts(t, back))
}

// TestTheBoundIsTheKernels fills a lot with a raw send until the kernel says no.
func TestTheBoundIsTheKernels(t *testing.T) {
	familytest.NoLeaks(t)
	charge, err := chargeOfMessage()
	require.NoError(t, err)
	for _, buffer := range []int{4 << 10, 64 << 10, 212992 / 2, sendBuffer} {
		p, err := newPair(buffer)
		require.NoError(t, err)
		want, err := p.messages(charge)
		require.NoError(t, err)
		got := 0
		for ; err == nil; got++ {
			err = p.send(make([]byte, MessageSize), nil)
		}
		require.ErrorIs(t, err, unix.EAGAIN)
		require.Equal(t, want, got-1, "buffer of %d", buffer)
		require.NoError(t, p.close())
	}
}

// TestKilledBetweenTwoSteps leaves the kernel as a process does that is killed
// after the first of two system calls.
func TestKilledBetweenTwoSteps(t *testing.T) {
	one := settings{count: 1, buffer: 16 << 10}
	for name, half := range map[string]struct {
		do   func(*lot) error
		want map[uint64]string
	}{
		"a copy whose original is still there": {
			func(l *lot) error { return l.copyLocked() },
			map[uint64]string{1: "one", 2: "two"}},
		"a copy of a copy": {
			func(l *lot) error { return errors.Join(l.copyLocked(), l.dropLocked(), l.copyLocked()) },
			map[uint64]string{1: "one", 2: "two"}},
		"an end whose beginning is still there": {
			func(l *lot) error { return l.addLocked(&Record{Kind: gone, ID: 2}, nil) },
			map[uint64]string{1: "one"}},
		"a copy, and then an end": {
			func(l *lot) error {
				return errors.Join(l.copyLocked(), l.addLocked(&Record{Kind: gone, ID: 1}, nil))
			},
			map[uint64]string{2: "two"}},
		"an end whose beginning was taken off": {
			func(l *lot) error {
				return errors.Join(l.addLocked(&Record{Kind: gone, ID: 1}, nil), l.dropLocked())
			},
			map[uint64]string{2: "two"}},
		"a lot whose peek offset was left anywhere": {
			func(l *lot) error { return l.pair.seek(MessageSize) },
			map[uint64]string{1: "one", 2: "two"}},
	} {
		t.Run(name, func(t *testing.T) {
			familytest.NoLeaks(t)
			h := newHolder(t)
			p, _ := h.mustOpen(one)
			h.mustPark(p, 1, "one")
			h.mustPark(p, 2, "two")
			require.NoError(t, half.do(p.lots[0]))
			require.NoError(t, p.Close())
			for range 3 { // each opening finds the same, and goes on from there
				p, back := h.mustOpen(one)
				require.Equal(t, half.want, texts(t, back))
				for i := range uint64(60) {
					h.mustPark(p, 10+i, "x")
					require.NoError(t, p.Leave(10+i))
				}
				require.Zero(t, p.Use().Stuck)
				require.NoError(t, p.Close())
			}
		})
	}
}

// TestWhatWasCopiedLeavesForGood ends what a killed process left twice in a lot: the
// second of two equal messages must not outlive the first.
func TestWhatWasCopiedLeavesForGood(t *testing.T) {
	familytest.NoLeaks(t)
	one := settings{count: 1, buffer: 16 << 10}
	h := newHolder(t)
	p, _ := h.mustOpen(one)
	h.mustPark(p, 1, "one")
	h.mustPark(p, 2, "two")
	require.NoError(t, p.lots[0].copyLocked())
	require.NoError(t, p.Close())

	p, back := h.mustOpen(one)
	require.Equal(t, map[uint64]string{1: "one", 2: "two"}, texts(t, back))
	require.NoError(t, p.Leave(1))
	require.NoError(t, p.Close())

	_, back = h.mustOpen(one)
	require.Equal(t, map[uint64]string{2: "two"}, texts(t, back))
}

// TestWhatIsRefused puts messages into a lot that no sockd of this version writes.
func TestWhatIsRefused(t *testing.T) {
	one := settings{count: 1, buffer: 16 << 10}
	old := changed(encoded(some, 2), offVersion, 0)
	for name, tt := range map[string]struct {
		m    []byte
		want error
	}{
		"foreign":                     {[]byte("somebody's words"), ErrForeign},
		"foreign and long":            {make([]byte, 5000), ErrForeign},
		"empty":                       {nil, ErrForeign},
		"truncated":                   {encoded(some, 2)[:100], ErrTruncated},
		"older":                       {old, ErrVersion},
		"corrupt":                     {append(encoded(some, 2)[:MessageSize-1], 1), ErrCorrupt},
		"with fewer descriptors":      {encoded(some, 3), ErrCorrupt},
		"longer, and begins as a one": {append(encoded(some, 2), "and more"...), ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			familytest.NoLeaks(t)
			h := newHolder(t)
			p, _ := h.mustOpen(one)
			h.mustPark(p, 1, "before")
			fds := mustPipe(t, "its bytes")
			require.NoError(t, p.lots[0].pair.send(tt.m, fds))
			require.NoError(t, unix.Close(fds[1]))
			defer unix.Close(fds[0])
			h.mustPark(p, 2, "after")
			require.NoError(t, p.Close())

			p, back, events := h.open(one)
			require.Len(t, events, 1)
			require.ErrorIs(t, events[0].Err, tt.want)
			require.Equal(t, "lot0", events[0].Lot)
			require.Equal(t, map[uint64]string{1: "before", 2: "after"}, texts(t, back))
			requireEnds(t, fds[0], "its descriptors are closed in the kernel, too")
			require.Equal(t, 2, p.Use().Messages)
			require.Equal(t, 4, p.Use().Descriptors)
			require.NoError(t, p.Close())

			_, back = h.mustOpen(one)
			require.Equal(t, map[uint64]string{1: "before", 2: "after"}, texts(t, back))
		})
	}
}

// requireEnds reads a pipe to its end, which comes when no write end is left.
func requireEnds(tb testing.TB, r int, why string) {
	tb.Helper()
	b := make([]byte, 64)
	familytest.Eventually(tb, why, func() bool {
		n, err := unix.Read(r, b)
		return n == 0 && err == nil
	})
}

// TestALotSomebodyElseTurned is the law "one process at a time" broken: nothing is
// copied that is not what it was taken for.
func TestALotSomebodyElseTurned(t *testing.T) {
	familytest.NoLeaks(t)
	h := newHolder(t)
	one := settings{count: 1, buffer: 16 << 10}
	p, _ := h.mustOpen(one)
	h.mustPark(p, 1, "one")
	h.mustPark(p, 2, "two")
	l := p.lots[0]
	_, err := l.pair.drop(make([]byte, MessageSize)) // not ours
	require.NoError(t, err)
	require.ErrorIs(t, l.stepLocked(), errStrange)
	require.ErrorIs(t, p.Park(Record{Kind: 1, ID: 3}), ErrFull, "it is not used any more")
	require.NoError(t, p.Close())
	_, back := h.mustOpen(one)
	require.Equal(t, map[uint64]string{2: "two"}, texts(t, back))
}

func TestFilesThatAreNoLot(t *testing.T) {
	for name, tt := range map[string]struct {
		spoil func(*holder)
		says  string
		lots  int
	}{
		"one end alone":            {func(h *holder) { closeAll(h.held["lot0"][1:]); h.held["lot0"] = h.held["lot0"][:1] }, "1 descriptors came back", 1},
		"the same end twice":       {func(h *holder) { h.swap("lot0", h.held["lot0"][0]) }, "not two ends", 1},
		"a pipe":                   {func(h *holder) { p := mustPipe(h.tb, "x"); h.swap("lot0", p[0]); closeAll(p) }, "look at parking lot: ", 1},
		"a name beyond the last":   {func(h *holder) { h.held["lot9"] = []int{mustDup(h.tb, h.held["lot0"][0])} }, "no parking lot has this name", 2},
		"a lot of three ends":      {func(h *holder) { h.held["lot1"] = append(h.held["lot1"], mustDup(h.tb, h.held["lot0"][0])) }, "3 descriptors came back", 1},
		"a name that is no number": {func(h *holder) { h.held["lottery"] = []int{mustDup(h.tb, h.held["lot0"][0])} }, "no parking lot has this name", 2},
	} {
		t.Run(name, func(t *testing.T) {
			familytest.NoLeaks(t)
			h := newHolder(t)
			p, _ := h.mustOpen(small)
			require.NoError(t, p.Close())
			tt.spoil(h)
			p, _, events := h.open(small)
			require.Len(t, events, 1)
			require.ErrorContains(t, events[0].Err, tt.says)
			require.Equal(t, tt.lots, p.Use().Lots)
			h.mustPark(p, 1, "goes on with the other")
		})
	}
}

// swap puts fd in place of the second end of a lot.
func (h *holder) swap(name string, fd int) {
	dup := mustDup(h.tb, fd)
	closeAll(h.held[name][1:])
	h.held[name][1] = dup
}

func TestOpenWithoutAStore(t *testing.T) {
	familytest.NoLeaks(t)
	h := newHolder(t)
	h.fail = errors.New("nobody holds anything")
	tell := func(e Event) { t.Errorf("told: %v", e) }
	p, back, err := Open(t.Context(), h, nil, tell)
	require.ErrorIs(t, err, h.fail)
	require.Nil(t, p)
	require.Nil(t, back)
}

func TestTheStoreGetsEightDescriptors(t *testing.T) {
	familytest.NoLeaks(t)
	h := newHolder(t)
	p, _, err := Open(t.Context(), h, nil, func(e Event) { t.Errorf("told: %v", e) })
	require.NoError(t, err)
	defer p.Close()
	n := 0
	for name, fds := range h.held {
		require.True(t, Stored(name))
		n += len(fds)
	}
	require.Equal(t, 8, n)
	require.False(t, Stored("varlink"))
}

// TestManyCallAtOnce parks, replaces and leaves from many goroutines, as a relay's
// event loops do.
func TestManyCallAtOnce(t *testing.T) {
	familytest.NoLeaks(t)
	h := newHolder(t)
	p, _ := h.mustOpen(settings{count: 4, buffer: 16 << 10})
	fds := mustPipe(t, "shared")
	defer closeAll(fds)
	var loops sync.WaitGroup
	for loop := range uint64(8) {
		loops.Go(func() {
			for i := range uint64(300) {
				r := Record{Kind: 1, ID: loop<<32 | i, Data: []byte("shared")}
				errs := []error{p.Park(r, fds[0]), p.Replace(r, fds...)}
				if i%50 != 0 {
					errs = append(errs, p.Leave(r.ID))
				}
				if err := errors.Join(errs...); err != nil {
					t.Error(err)
				}
				_ = p.Use()
			}
		})
	}
	loops.Wait()
	require.Equal(t, 8*6, p.Use().Parked)
	require.Zero(t, p.Use().Stuck)
	require.NoError(t, p.Close())
	_, back := h.mustOpen(settings{count: 4, buffer: 16 << 10})
	require.Len(t, texts(t, back), 8*6)
}

// What leaves now is closed when LeaveNow returns, wherever in the lot it was, and what
// is parked beside it stays.
func TestWhatLeavesNowIsClosed(t *testing.T) {
	familytest.NoLeaks(t)
	for _, place := range []uint64{1, 4, 7} {
		h := newHolder(t)
		p, _ := h.mustOpen(settings{count: 1, buffer: small.buffer})
		var pipe [2]int
		require.NoError(t, unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK))
		for id := uint64(1); id <= 7; id++ {
			if id == place {
				require.NoError(t, p.Park(Record{Kind: 1, ID: id}, pipe[1]))
				require.NoError(t, p.Replace(Record{Kind: 1, ID: id}, pipe[1]))
				continue
			}
			h.mustPark(p, id, fmt.Sprint("stays", id))
		}
		require.NoError(t, unix.Close(pipe[1]))
		_, err := unix.Read(pipe[0], make([]byte, 1))
		require.ErrorIs(t, err, unix.EAGAIN, "a writer is parked")

		require.NoError(t, p.LeaveNow(place))
		n, err := unix.Read(pipe[0], make([]byte, 1))
		require.NoError(t, err)
		require.Zero(t, n, "no writer is left")
		require.False(t, p.Has(place))
		require.ErrorIs(t, p.LeaveNow(place), ErrNotParked)
		require.Equal(t, 6, p.Use().Parked)
		require.NoError(t, p.Close())
		p, back := h.mustOpen(settings{count: 1, buffer: small.buffer})
		require.Len(t, back, 6)
		for _, b := range back {
			closeAll(b.FDs)
		}
		require.NoError(t, p.Close())
		require.NoError(t, unix.Close(pipe[0]))
	}
}
