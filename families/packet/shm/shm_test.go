package shm

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/sockd/sockd/families/familytest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func mustWriter(tb testing.TB, bytes int) *Writer {
	tb.Helper()
	w, err := NewWriter(bytes)
	require.NoError(tb, err)
	tb.Cleanup(w.Close)
	return w
}

// mustReader opens w's memory as the other process would, by descriptors of its own.
func mustReader(tb testing.TB, w *Writer) *Reader {
	tb.Helper()
	r, err := NewReader(dup(tb, w.Files()))
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = r.Close() })
	return r
}

func dup(tb testing.TB, f Files) Files {
	tb.Helper()
	one := func(fd int) int {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		require.NoError(tb, err)
		return n
	}
	return Files{one(f.Data), one(f.Control), one(f.Wake)}
}

// put appends a packet block of a length that carries seq.
func put(w *Writer, seq uint64, length int) error {
	b, err := w.Room(length, false)
	if err != nil {
		return err
	}
	b = b[:length]
	le.PutUint32(b, packetBlock)
	le.PutUint32(b[4:], uint32(length))
	le.PutUint64(b[8:], seq)
	for i := 16; i < length; i++ {
		b[i] = byte(seq) + byte(i)
	}
	w.Commit(length, true)
	return nil
}

// check tells whether a block is what put wrote for seq.
func check(b []byte, seq uint64) bool {
	if len(b) < packetLen || int(le.Uint32(b[4:])) != len(b) || le.Uint64(b[8:]) != seq {
		return false
	}
	for i := 16; i < len(b); i++ {
		if b[i] != byte(seq)+byte(i) {
			return false
		}
	}
	return true
}

// some is a block's length: most are short, a few as long as there are.
func some(r *rand.Rand) int {
	if r.IntN(50) == 0 {
		return 4 * (7 + r.IntN(65600))
	}
	return 4 * (7 + r.IntN(400))
}

func TestBlocksComeWholeAndInOrder(t *testing.T) {
	familytest.NoLeaks(t)
	const packets = 60_000
	w := mustWriter(t, MinBytes)
	r := mustReader(t, w)
	lost := make(chan uint64, 1)
	go write(w, packets, lost)
	var next, gaps uint64
	for {
		b, err := r.Next(t.Context())
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		seq := le.Uint64(b[8:])
		require.GreaterOrEqual(t, seq, next)
		if !check(b, seq) {
			t.Fatalf("packet %d came as % x", seq, b[:28])
		}
		gaps += seq - next
		next = seq + 1
	}
	gaps += packets - next
	require.Equal(t, <-lost, gaps, "what did not come is what found no room")
	require.EqualValues(t, gaps, r.Stats().Lost)
	require.NoError(t, r.Close())
	stats, err := w.Stats()
	require.NoError(t, err)
	require.EqualValues(t, packets-gaps, stats.Packets)
	require.Equal(t, stats.Packets, stats.Taken)
	require.Equal(t, int64(gaps), stats.Lost)
}

// write writes packets in batches, as the reader of a ring does.
func write(w *Writer, packets uint64, lost chan<- uint64) {
	r := rand.New(rand.NewPCG(1, 2))
	var full uint64
	for seq := range packets {
		if put(w, seq, some(r)) != nil {
			full++
			w.Lose()
		}
		if seq%50 == 49 {
			_ = w.Flush()
		}
	}
	w.End()
	lost <- full
}

func TestAReaderThatStandsStillLosesWhatFindsNoRoom(t *testing.T) {
	w := mustWriter(t, MinBytes)
	r := mustReader(t, w)
	kept := uint64(0)
	for put(w, kept, 1000) == nil {
		kept++
	}
	require.InDelta(t, (MinBytes-reserve)/1000, kept, 2)
	for range 500 {
		require.ErrorIs(t, put(w, kept, 1000), ErrFull)
		w.Lose()
	}
	_, err := w.Room(4000, true)
	require.NoError(t, err, "the reserve is for what is urgent")
	require.NoError(t, w.Flush())
	for seq := range kept {
		b, err := r.Next(t.Context())
		require.NoError(t, err)
		require.True(t, check(b, seq))
	}
	require.EqualValues(t, 500, r.Stats().Lost)
	stats, err := w.Stats()
	require.NoError(t, err)
	require.Less(t, stats.Taken, stats.Packets, "the reader holds the last one")
	require.Equal(t, lapsed(r), context.Canceled)
	stats, err = w.Stats()
	require.NoError(t, err)
	require.Equal(t, Stats{Packets: int64(kept), Taken: int64(kept), Lost: 500}, stats)
	require.NoError(t, put(w, kept, 1000), "there is room again")
}

func lapsed(r *Reader) error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := r.Next(ctx)
	return err
}

// The longest block of a capture fits into an empty ring, wherever it begins.
func TestTheLongestBlockFitsAnywhere(t *testing.T) {
	const longest = 262144 + 64
	w := mustWriter(t, MinBytes)
	r := mustReader(t, w)
	for seq := range uint64(60) {
		require.NoError(t, put(w, 2*seq, longest))
		require.NoError(t, put(w, 2*seq+1, 4*(7+int(seq)*997)))
		require.NoError(t, w.Flush())
		for i := range uint64(2) {
			b, err := r.Next(t.Context())
			require.NoError(t, err)
			require.True(t, check(b, 2*seq+i))
		}
		require.ErrorIs(t, lapsed(r), context.Canceled) // gives the last one back
	}
}

func TestPacketsCostNoSystemCall(t *testing.T) {
	w := mustWriter(t, 0)
	r := mustReader(t, w)
	seq := uint64(0)
	require.Zero(t, testing.AllocsPerRun(2000, func() {
		for range 10 {
			if put(w, seq, 200) != nil {
				t.Error("no room")
			}
			seq++
		}
		if w.Flush() != nil {
			t.Error("the reader lies")
		}
		for i := range uint64(10) {
			b, err := r.Next(context.Background())
			if err != nil || le.Uint64(b[8:]) != seq-10+i {
				t.Error("not what was written")
			}
		}
	}))
	require.Zero(t, r.Stats().Sleeps)
	stats, err := w.Stats()
	require.NoError(t, err)
	require.Zero(t, stats.Wakes)
	require.EqualValues(t, seq, stats.Packets)
}

func TestASleeperIsWokenOnceABatch(t *testing.T) {
	w := mustWriter(t, 0)
	r := mustReader(t, w)
	came := make(chan error)
	for batch := range uint64(20) {
		go func() { came <- taken(r, 100*batch, 100) }()
		familytest.Eventually(t, "the reader does not sleep", func() bool { return w.control.sleeping().Load() == 1 })
		for i := range uint64(100) {
			require.NoError(t, put(w, 100*batch+i, 60))
		}
		require.NoError(t, w.Flush())
		require.NoError(t, <-came)
	}
	stats, err := w.Stats()
	require.NoError(t, err)
	require.EqualValues(t, 20, stats.Wakes)
	require.LessOrEqual(t, r.Stats().Sleeps, int64(21))
}

func taken(r *Reader, first, n uint64) error {
	for i := range n {
		b, err := r.Next(context.Background())
		if err != nil {
			return err
		}
		if !check(b, first+i) {
			return errors.New("not what was written")
		}
	}
	return nil
}

func TestNextEndsWith(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(w *Writer, r *Reader, cancel context.CancelFunc)
		want error
	}{
		{"the end", func(w *Writer, _ *Reader, _ context.CancelFunc) { w.End() }, io.EOF},
		{"a daemon that is gone", func(w *Writer, _ *Reader, _ context.CancelFunc) { w.Close() }, io.ErrUnexpectedEOF},
		{"its context", func(_ *Writer, _ *Reader, cancel context.CancelFunc) { cancel() }, context.Canceled},
		{"Close", func(_ *Writer, r *Reader, _ context.CancelFunc) { _ = r.Close() }, net.ErrClosed},
	} {
		for _, asleep := range []bool{false, true} {
			name := tt.name
			if asleep {
				name += ", asleep"
			}
			t.Run(name, func(t *testing.T) {
				familytest.NoLeaks(t)
				w := mustWriter(t, MinBytes)
				r := mustReader(t, w)
				w.CloseFiles() // as the daemon does
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if !asleep {
					tt.end(w, r, cancel)
					_, err := r.Next(ctx)
					require.ErrorIs(t, err, tt.want)
					return
				}
				ended := make(chan error)
				go func() { _, err := r.Next(ctx); ended <- err }()
				familytest.Eventually(t, "the reader does not sleep", func() bool { return r.Stats().Sleeps == 1 })
				tt.end(w, r, cancel)
				require.ErrorIs(t, <-ended, tt.want)
				require.NoError(t, r.Close())
				require.NoError(t, r.Close())
			})
		}
	}
}

func TestACancelledNextCanBeCalledAgain(t *testing.T) {
	w := mustWriter(t, MinBytes)
	r := mustReader(t, w)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { _, err := r.Next(ctx); ended <- err }()
	familytest.Eventually(t, "the reader does not sleep", func() bool { return r.Stats().Sleeps == 1 })
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
	go func() { ended <- taken(r, 1, 1) }()
	familytest.Eventually(t, "the reader does not sleep", func() bool { return r.Stats().Sleeps == 2 })
	require.NoError(t, put(w, 1, 60))
	require.NoError(t, w.Flush())
	require.NoError(t, <-ended)
}

func TestALieEndsIt(t *testing.T) {
	for _, tt := range []struct {
		name string
		lie  func(c control, pos uint64)
		what string
	}{
		{"read further than was written", func(c control, pos uint64) { c.read().Store(pos + 8) }, "position"},
		{"read all there is", func(c control, _ uint64) { c.read().Store(^uint64(0) &^ 7) }, "position"},
		{"read within a block", func(c control, _ uint64) { c.read().Store(4) }, "position"},
		{"turned back", func(c control, _ uint64) { c.read().Store(0) }, "position"},
		{"more packets than there were", func(c control, _ uint64) { c.packets().Store(1 << 40) }, "packets"},
		{"fewer packets than before", func(c control, _ uint64) { c.packets().Store(0) }, "packets"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := mustWriter(t, MinBytes)
			r := mustReader(t, w)
			for seq := range uint64(100) {
				require.NoError(t, put(w, seq, 60))
			}
			require.NoError(t, w.Flush())
			require.NoError(t, taken(r, 0, 100))
			require.ErrorIs(t, lapsed(r), context.Canceled)
			before, err := w.Stats()
			require.NoError(t, err)
			require.EqualValues(t, 100, before.Taken)

			tt.lie(r.control, w.pos)
			after, err := w.Stats()
			var lie *ReaderError
			require.True(t, errors.As(err, &lie), "%v", err)
			require.Equal(t, tt.what, lie.What)
			require.Equal(t, before, after, "what was true stays")
			_, err = w.Room(60, false)
			require.ErrorIs(t, err, error(lie), "for good")
			require.ErrorIs(t, w.Flush(), error(lie))
		})
	}
	t.Run("a word that is no sleep", func(t *testing.T) {
		w := mustWriter(t, MinBytes)
		mustReader(t, w).control.sleeping().Store(7)
		var lie *ReaderError
		require.True(t, errors.As(w.Flush(), &lie))
		require.Equal(t, "sleeping", lie.What)
	})
}

// What a reader may do with its descriptors hurts nobody.
func TestAReaderCannot(t *testing.T) {
	w := mustWriter(t, MinBytes)
	f := dup(t, w.Files())
	t.Cleanup(f.Close)
	_, err := unix.Mmap(f.Data, 0, headerBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	require.ErrorIs(t, err, unix.EACCES, "write to data")
	mem, err := unix.Mmap(f.Data, 0, headerBytes, unix.PROT_READ, unix.MAP_SHARED)
	require.NoError(t, err)
	require.ErrorIs(t, unix.Mprotect(mem, unix.PROT_READ|unix.PROT_WRITE), unix.EACCES, "make a mapping writable")
	require.ErrorIs(t, unix.Madvise(mem, unix.MADV_REMOVE), unix.EACCES, "take it away from others")
	require.NoError(t, unix.Munmap(mem))
	_, err = unix.Pwrite(f.Data, []byte{1}, headerBytes)
	require.ErrorIs(t, err, unix.EBADF, "write to data by its descriptor")
	require.ErrorIs(t, unix.Fallocate(f.Data, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 8192), unix.EBADF, "punch a hole")
	require.Error(t, unix.Ftruncate(f.Data, 0), "cut it off")
	for _, size := range []int64{0, 1 << 30} {
		require.ErrorIs(t, unix.Ftruncate(f.Control, size), unix.EPERM, "have another size")
	}
	for _, fd := range []int{f.Data, f.Control} {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE)
		require.ErrorIs(t, err, unix.EPERM, "add a seal")
	}
}

// A descriptor opens again through /proc in any mode that the file's owner allows: that
// is nobody else.
func TestAnotherUserCannotOpenTheMemoryForWriting(t *testing.T) {
	familytest.Need(t, familytest.Root())
	w := mustWriter(t, MinBytes)
	f := dup(t, w.Files())
	t.Cleanup(func() { _ = unix.Close(f.Wake) })
	data, page := os.NewFile(uintptr(f.Data), "data"), os.NewFile(uintptr(f.Control), "control")
	defer page.Close()
	defer data.Close()
	for _, tt := range []struct {
		do   string
		fine bool
	}{{"true <&3", true}, {": 4<>/proc/self/fd/3", false}, {": 4<>/proc/self/fd/4", false}, {": >>/proc/self/fd/3", false}} {
		c := exec.Command("sh", "-c", tt.do)
		c.ExtraFiles = []*os.File{data, page}
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := c.CombinedOutput()
		if tt.fine {
			require.NoError(t, err, "%s", out)
			continue
		}
		require.Error(t, err, tt.do)
		require.Contains(t, string(out), "Permission denied")
	}
}

// allocated is how many bytes a file has in memory.
func allocated(t *testing.T, fd int) int64 {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(fd, &st))
	return st.Blocks * 512
}

// Who keeps its descriptors when it leaves keeps no memory with them.
func TestCloseGivesTheMemoryBackWhoeverHasIt(t *testing.T) {
	w := mustWriter(t, MinBytes)
	f := dup(t, w.Files())
	t.Cleanup(f.Close)
	r := mustReader(t, w)
	for seq := range uint64(500) {
		require.NoError(t, put(w, seq, 1000))
	}
	require.NoError(t, w.Flush())
	require.NoError(t, taken(r, 0, 100))
	require.GreaterOrEqual(t, allocated(t, f.Data), int64(MinBytes))
	w.Close()
	require.Zero(t, allocated(t, f.Data)+allocated(t, f.Control))
	_, err := r.Next(t.Context())
	require.ErrorIs(t, err, io.ErrUnexpectedEOF, "zeros are no blocks")
}

func TestLeaveLeavesTheReaderWhatThereIs(t *testing.T) {
	w := mustWriter(t, MinBytes)
	r := mustReader(t, w)
	for seq := range uint64(500) {
		require.NoError(t, put(w, seq, 1000))
	}
	w.End()
	w.Leave()
	require.NoError(t, taken(r, 0, 500))
	_, err := r.Next(t.Context())
	require.ErrorIs(t, err, io.EOF)
}

// A reader that says it sleeps and never wakes fills the pipe, whatever it does to its
// end: the writer does not wait.
func TestAFullPipeDoesNotHoldTheWriter(t *testing.T) {
	w := mustWriter(t, MinBytes)
	r := mustReader(t, w)
	require.NoError(t, unix.SetNonblock(w.files.Wake, false))
	const size = 4096 // of the smallest pipe
	_, err := unix.FcntlInt(uintptr(w.files.Wake), unix.F_SETPIPE_SZ, size)
	require.NoError(t, err)
	for range 2 * size {
		r.control.sleeping().Store(1)
		require.NoError(t, w.Flush())
	}
	stats, err := w.Stats()
	require.NoError(t, err)
	require.EqualValues(t, 2*size, stats.Wakes)
}

func TestNewReaderRefuses(t *testing.T) {
	memfd := func(size int64, seals int, content ...byte) int {
		fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		require.NoError(t, err)
		require.NoError(t, unix.Ftruncate(fd, size))
		_, err = unix.Pwrite(fd, content, 0)
		require.NoError(t, err)
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
		require.NoError(t, err)
		return fd
	}
	const good, page = headerBytes + MinBytes, controlBytes
	for _, tt := range []struct {
		name string
		f    func(f Files) Files
		why  string
	}{
		{"data that can shrink", func(f Files) Files { f.Data = memfd(good, unix.F_SEAL_GROW); return f }, "data is not sealed"},
		{"control that can shrink", func(f Files) Files { f.Control = memfd(page, 0); return f }, "control is not sealed"},
		{"data that is short", func(f Files) Files { f.Data = memfd(page, fixed); return f }, "data of 4096 bytes"},
		{"data that is huge", func(f Files) Files { f.Data = memfd(1<<40, fixed); return f }, "data of 1099511627776 bytes"},
		{"data of an odd size", func(f Files) Files { f.Data = memfd(good+3, fixed); return f }, "bytes"},
		{"control of another size", func(f Files) Files { f.Control = memfd(good, fixed); return f }, "control of"},
		{"another header", func(f Files) Files { f.Data = memfd(good, fixed, 1); return f }, "header"},
		{"no memory at all", func(f Files) Files { f.Data, _ = unix.Dup(f.Wake); return f }, "seals of data"},
		{"no descriptor", func(f Files) Files { f.Wake = -1; return f }, "wake"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			familytest.NoLeaks(t)
			w := mustWriter(t, MinBytes)
			f := dup(t, w.Files())
			changed := tt.f(f)
			if changed.Data != f.Data {
				_ = unix.Close(f.Data)
			}
			if changed.Control != f.Control {
				_ = unix.Close(f.Control)
			}
			if changed.Wake != f.Wake {
				_ = unix.Close(f.Wake)
			}
			r, err := NewReader(changed)
			require.Nil(t, r)
			require.ErrorContains(t, err, tt.why)
			w.Close()
		})
	}
}

func TestSizesAreWithinBounds(t *testing.T) {
	for _, tt := range []struct{ asked, want int }{{0, DefaultBytes}, {1, MinBytes}, {MinBytes, MinBytes}, {MinBytes + 1, 2 * MinBytes}, {1 << 40, MaxBytes}} {
		require.Equal(t, tt.want, RingBytes(tt.asked))
	}
	require.Equal(t, MinBytes, mustWriter(t, 1).Bytes())
}

// Whatever stands in the memory, the reader walks over blocks that lie within the ring
// and comes to an end or an error.
func FuzzReader(f *testing.F) {
	block := func(kind, total uint32) []byte {
		b := make([]byte, aligned(int(min(total, 64))))
		le.PutUint32(b, kind)
		le.PutUint32(b[4:], total)
		return b
	}
	f.Add(uint64(64), append(block(packetBlock, 32), block(1, 28)...))
	f.Add(uint64(64), append(block(padBlock, 4096), block(6, 12)...))
	f.Add(uint64(1<<63), block(packetBlock, 0xfffffff8))
	f.Add(uint64(4096), append(make([]byte, 4088), block(padBlock, 8)...))
	f.Fuzz(func(t *testing.T, written uint64, memory []byte) {
		head, page, ring := make([]byte, headerBytes), make([]byte, controlBytes), make([]byte, 4096)
		r := &Reader{header: header{head}, control: control{page}, ring: ring}
		copy(ring, memory)
		le.PutUint64(head[atMagic:], magic)
		r.header.written().Store(written)
		if grown, err := r.grow(); !grown || err != nil {
			require.True(t, written == 0 || errors.Is(err, ErrFormat))
			return
		}
		require.LessOrEqual(t, r.limit, uint64(len(ring)))
		for range len(ring)/align + 1 {
			before := r.pos
			b, err := r.step()
			if err != nil {
				require.ErrorIs(t, err, ErrFormat)
				return
			}
			if b == nil {
				require.Equal(t, r.limit, r.pos)
				return
			}
			require.Greater(t, r.pos, before)
			require.LessOrEqual(t, r.pos, r.limit)
			require.GreaterOrEqual(t, len(b), blockLen)
			require.EqualValues(t, len(b), binary.LittleEndian.Uint32(b[4:]))
		}
		t.Fatal("no end")
	})
}

// Whatever a reader writes into its page, and whenever: the writer keeps what it may
// still need, stays within the ring, and never believes what cannot be.
func FuzzControl(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5}, uint64(8), uint64(0))
	f.Add([]byte{4, 4, 4, 0, 4, 1, 4}, uint64(1<<40), uint64(1<<40))
	f.Add([]byte{0, 0, 0, 1, 5, 0, 0, 0}, uint64(64), uint64(1))
	f.Fuzz(func(t *testing.T, steps []byte, position, packets uint64) {
		w := &Writer{wake: -1, header: header{make([]byte, headerBytes)}, control: control{make([]byte, controlBytes)}, ring: make([]byte, reserve+4096)}
		for _, s := range steps {
			oldRead, wasBroken := w.read, w.broken != nil
			switch s % 6 {
			case 0, 1, 2:
				_ = put(w, uint64(s), 4*(7+int(s)*3))
			case 3:
				_ = w.Flush()
			case 4:
				w.control.read().Store(position * uint64(s>>3))
				w.control.packets().Store(packets * uint64(s>>3))
			case 5:
				w.control.sleeping().Store(uint32(s >> 3))
				_, _ = w.Stats()
			}
			require.False(t, wasBroken && w.broken == nil)
			require.True(t, oldRead <= w.read && w.read <= w.published && w.published <= w.pos)
			require.LessOrEqual(t, w.used(), len(w.ring))
			require.True(t, w.taken <= w.told && w.told <= w.packets)
		}
	})
}

func BenchmarkPacket(b *testing.B) {
	w := mustWriter(b, 0)
	r := mustReader(b, w)
	b.ReportAllocs()
	b.SetBytes(128)
	for b.Loop() {
		if put(w, 1, 128) != nil || w.Flush() != nil {
			b.Fatal("no room")
		}
		if _, err := r.Next(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}
