package park

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/sockd/sockd/families/familytest"
)

// childEnv makes this test binary a process that parks. It finds lots from
// descriptor 4 on, two for a name, and reports on descriptor 3.
const (
	childEnv = "SOCKD_TEST_PARK"
	lotsEnv  = "SOCKD_TEST_LOTS"
	limitEnv = "SOCKD_TEST_NOFILE" // descriptors that it may have
	userEnv  = "SOCKD_TEST_UID"    // whom it becomes
)

func TestMain(m *testing.M) {
	if mode := os.Getenv(childEnv); mode != "" {
		if err := child(mode); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// noStore is the child's: its lots are there already.
type noStore struct{}

func (noStore) Store(string, ...int) error    { return errors.New("the lot should be there") }
func (noStore) Remove(string) error           { return errors.New("nothing is to be removed") }
func (noStore) Barrier(context.Context) error { return errors.New("nothing is to be waited for") }

func child(mode string) error {
	if err := limited(); err != nil {
		return err
	}
	var files []File
	for i, name := range strings.Fields(os.Getenv(lotsEnv)) {
		unix.CloseOnExec(4 + i)
		files = append(files, File{name, 4 + i})
	}
	var events []error
	p, back, err := open(context.Background(), noStore{}, files, func(e Event) { events = append(events, e.Err) }, small)
	if err != nil {
		return err
	}
	switch mode {
	case "churn":
		return errors.Join(churn(p, back), errors.Join(events...))
	case "cramped":
		return cramped(p, back, events)
	}
	return parkUntilFull(p)
}

// limited takes on the limits that the test wants.
func limited() error {
	if files, err := strconv.ParseUint(os.Getenv(limitEnv), 10, 64); err == nil {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: files, Max: files}); err != nil {
			return err
		}
	}
	if uid, err := strconv.Atoi(os.Getenv(userEnv)); err == nil {
		return syscall.Setuid(uid) // of all threads, and their capabilities go with it
	}
	return nil
}

// A step is what the churning child is about to do (begun) or has done.
type step struct {
	Begun bool
	What  byte // 'p', 'r', 'l'
	ID    uint64
	Value uint64 // what stands in its pipe
}

const stepSize = 18

func (s step) write() error {
	var b bytes.Buffer
	_ = binary.Write(&b, binary.LittleEndian, s) // a Buffer takes all
	_, err := unix.Write(3, b.Bytes())
	return err
}

// do reports, does and reports again.
func (s step) do(what func() error) error {
	s.Begun = true
	err := s.write()
	if err == nil {
		err = what()
	}
	if err != nil {
		return fmt.Errorf("%c %d: %w", s.What, s.ID, err)
	}
	s.Begun = false
	return s.write()
}

// churn parks, replaces and leaves at random until it is killed.
func churn(p *Parking, back []Parked) error {
	var parked []uint64
	next := uint64(1)
	for _, b := range back {
		closeAll(b.FDs)
		parked = append(parked, b.ID)
		next = max(next, b.ID+1)
	}
	next += 1 << 20 // IDs of lives that left are not in back
	for value := rand.Uint64() >> 1; ; value++ {
		var err error
		i := rand.IntN(len(parked) + 1)
		switch {
		case len(parked) < 4 || len(parked) < 40 && rand.IntN(3) == 0:
			next++
			parked = append(parked, next)
			err = step{What: 'p', ID: next, Value: value}.do(func() error { return put(p.Park, next, value) })
		case i == len(parked):
			continue
		case rand.IntN(2) == 0:
			err = step{What: 'r', ID: parked[i], Value: value}.do(func() error { return put(p.Replace, parked[i], value) })
		default:
			err = step{What: 'l', ID: parked[i]}.do(func() error { return p.Leave(parked[i]) })
			parked = slices.Delete(parked, i, i+1)
		}
		if err != nil {
			return err
		}
	}
}

// put parks a pipe that holds value, its number of descriptors depending on it.
func put(park func(Record, ...int) error, id, value uint64) error {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return err
	}
	defer closeAll(p[:])
	text := strconv.FormatUint(value, 10)
	if _, err := unix.Write(p[1], []byte(text)); err != nil {
		return err
	}
	fds := slices.Repeat(p[:], 3)[:1+value%6]
	return park(Record{Kind: 1, ID: id, Data: []byte(text)}, fds...)
}

// A process is a child of the test that is killed at the latest when the test
// ends.
type process struct {
	cmd    *exec.Cmd
	report *os.File
	stderr bytes.Buffer
}

func (h *holder) start(mode string, env ...string) *process {
	h.tb.Helper()
	r, w, err := os.Pipe()
	require.NoError(h.tb, err)
	c := &process{report: r, cmd: exec.Command("/proc/self/exe")}
	c.cmd.Env = append(append(os.Environ(), childEnv+"="+mode, "GORACE=atexit_sleep_ms=0"), env...)
	c.cmd.Stderr = &c.stderr
	c.cmd.ExtraFiles = []*os.File{w}
	var names []string
	for _, f := range h.files() {
		names = append(names, f.Name)
		c.cmd.ExtraFiles = append(c.cmd.ExtraFiles, os.NewFile(uintptr(f.FD), f.Name))
	}
	c.cmd.Env = append(c.cmd.Env, lotsEnv+"="+strings.Join(names, " "))
	require.NoError(h.tb, c.cmd.Start())
	for _, f := range c.cmd.ExtraFiles {
		require.NoError(h.tb, f.Close())
	}
	return c
}

// kill lets the child run for a while after its first report, kills it, and
// returns all that it reported.
func (c *process) kill(tb testing.TB, after time.Duration) []step {
	tb.Helper()
	first := make([]byte, stepSize)
	_, err := io.ReadFull(c.report, first)
	if err != nil {
		_ = c.cmd.Wait()
		tb.Fatalf("the child says nothing: %v\n%s", err, c.stderr.String())
	}
	timer := time.AfterFunc(after, func() { _ = c.cmd.Process.Kill() })
	rest, err := io.ReadAll(c.report) // ends with the child
	require.NoError(tb, err)
	timer.Stop()
	_ = c.cmd.Wait() // by a kill
	require.NoError(tb, c.report.Close())
	require.Empty(tb, c.stderr.String())
	var steps []step
	for all := append(first, rest...); len(all) > 0; all = all[stepSize:] {
		require.GreaterOrEqual(tb, len(all), stepSize, "a report is written whole")
		var s step
		require.NoError(tb, binary.Read(bytes.NewReader(all[:stepSize]), binary.LittleEndian, &s))
		steps = append(steps, s)
	}
	return steps
}

// A ledger is what must be parked, by ID, and what is in doubt: the last step of a
// child that was killed in it.
type ledger struct {
	parked map[uint64]string
	doubt  *step
}

func (l *ledger) enter(steps []step) {
	for _, s := range steps {
		if l.doubt = nil; s.Begun {
			l.doubt = &s
			continue
		}
		l.done(s)
	}
}

func (l *ledger) done(s step) {
	if s.What == 'l' {
		delete(l.parked, s.ID)
		return
	}
	l.parked[s.ID] = strconv.FormatUint(s.Value, 10)
}

// settle compares with what came back. The step in doubt was done, or was not.
func (l *ledger) settle(tb testing.TB, back map[uint64]string) {
	tb.Helper()
	if s := l.doubt; s != nil {
		text, there := back[s.ID]
		if s.What == 'l' && !there || s.What != 'l' && text == strconv.FormatUint(s.Value, 10) {
			l.done(*s)
		}
	}
	require.Equal(tb, l.parked, back)
}

// TestKilledAtAnyMoment kills a process that parks, replaces, leaves and turns
// over without pause, and looks each time at what is in the lots.
func TestKilledAtAnyMoment(t *testing.T) {
	familytest.NoLeaks(t)
	const kills = 250
	h := newHolder(t)
	p, _ := h.mustOpen(small)
	require.NoError(t, p.Close())
	book := ledger{parked: map[uint64]string{}}
	steps, doubts := 0, map[byte]int{}
	for range kills {
		done := h.start("churn").kill(t, time.Duration(rand.IntN(3000))*time.Microsecond)
		steps += len(done) / 2
		book.enter(done)
		if book.doubt != nil {
			doubts[book.doubt.What]++
		}
		p, back := h.mustOpen(small)
		require.NoError(t, p.Close())
		book.settle(t, texts(t, back))
	}
	t.Logf("%d kills in %d steps; killed within park %d, replace %d, leave %d times", kills, steps, doubts['p'], doubts['r'], doubts['l'])
	require.Greater(t, steps, 10*kills)
	require.NotZero(t, doubts['p']*doubts['r']*doubts['l'], "each kind of step was cut short")
}

// cramped is a process with room for few descriptors: it reports how many records came
// back and how many were told of.
func cramped(p *Parking, back []Parked, events []error) error {
	for _, err := range events {
		if !errors.Is(err, ErrUnread) {
			return err
		}
	}
	for _, b := range back {
		closeAll(b.FDs)
	}
	for id := uint64(1000); id < 1100; id++ { // and turn over what it could not read
		if err := errors.Join(put(p.Park, id, id), p.Leave(id)); err != nil {
			return err
		}
	}
	_, err := unix.Write(3, fmt.Appendf(nil, "%d %d", len(back), len(events)))
	return err
}

// TestWhatDoesNotFitStaysParked opens the lots with fewer descriptors than there
// are in them.
func TestWhatDoesNotFitStaysParked(t *testing.T) {
	familytest.NoLeaks(t)
	h := newHolder(t)
	p, _ := h.mustOpen(small)
	want := map[uint64]string{}
	for id := range uint64(40) {
		want[id] = fmt.Sprint("session ", id)
		h.mustPark(p, id, want[id])
	}
	require.NoError(t, p.Close())

	report := h.runToItsEnd(t, "cramped", limitEnv+"=50")
	var back, unread int
	_, err := fmt.Sscanf(report, "%d %d", &back, &unread)
	require.NoError(t, err, "%q", report)
	require.Equal(t, 40, back+unread)
	require.NotZero(t, unread)

	_, all := h.mustOpen(small)
	require.Equal(t, want, texts(t, all))
}

// runToItsEnd runs a child that is not killed, and returns its report.
func (h *holder) runToItsEnd(t *testing.T, mode string, env ...string) string {
	t.Helper()
	c := h.start(mode, env...)
	b, err := io.ReadAll(c.report)
	require.NoError(t, err)
	require.NoError(t, c.report.Close())
	require.NoError(t, c.cmd.Wait(), "%s", c.stderr.String())
	return string(b)
}

// parkUntilFull parks until the bound, and says what the bound is.
func parkUntilFull(p *Parking) error {
	for id := uint64(1); ; id++ {
		err := put(p.Park, id, 5) // six descriptors
		if err == nil {
			continue
		}
		if err := put(p.Replace, 1, 0); err != nil {
			return err
		}
		if err := p.Leave(2); err != nil {
			return err
		}
		_, werr := fmt.Fprintf(fd3{}, "%d: %v, %t %t", id-1, err, errors.Is(err, ErrFull), errors.Is(err, unix.ETOOMANYREFS))
		return werr
	}
}

type fd3 struct{}

func (fd3) Write(b []byte) (int, error) { return unix.Write(3, b) }

// TestDescriptorsInFlightAreBounded parks as a user without capabilities, whose
// descriptors in flight the kernel counts.
func TestDescriptorsInFlightAreBounded(t *testing.T) {
	familytest.NoLeaks(t)
	if os.Geteuid() != 0 {
		familytest.Need(t, os.ErrPermission) // to become another user
	}
	h := newHolder(t)
	p, _ := h.mustOpen(small)
	require.NoError(t, p.Close())
	report := h.runToItsEnd(t, "full", limitEnv+"=100", userEnv+"=65534")
	require.Equal(t, "12: park 13: parking lot is full: 72 of 75 descriptors in flight; RLIMIT_NOFILE (LimitNOFILE=) raises it: "+
		"too many references: cannot splice, true true", report)

	p, back := h.mustOpen(small)
	require.Len(t, texts(t, back), 11, "one left")
	require.Zero(t, p.Use().DescriptorBound, "root is not asked")
}
