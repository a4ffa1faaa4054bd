package relay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/all"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/ksock"
	"github.com/sockd/sockd/families/model"
	"github.com/stretchr/testify/require"
)

// parkedWorld is a world whose engine parks in a lot. next gives it another engine, as
// after a restart.
type parkedWorld struct {
	*world
	lot *lot
}

func newParkedWorld(tb testing.TB) *parkedWorld {
	tb.Helper()
	w := &parkedWorld{world: newWorld(tb), lot: newLot()}
	require.NoError(tb, w.eng.Close())
	w.renew()
	tb.Cleanup(w.lot.close)
	return w
}

func (w *parkedWorld) renew() {
	w.eng = New(Options{Families: all.Set(), Host: w.host, Log: slog.New(slog.DiscardHandler), Parking: w.lot})
	w.tb.Cleanup(func() { require.NoError(w.tb, w.eng.Close()) })
}

// next abandons the engine and has another one take everything up.
func (w *parkedWorld) next() {
	w.tb.Helper()
	require.NoError(w.tb, w.eng.Abandon())
	w.renew()
	require.NoError(w.tb, w.eng.Restore(context.Background(), w.lot.take(w.tb)))
}

func durable(s model.RelaySpec) model.RelaySpec {
	s.Durable = model.DurableYes
	return s
}

func TestAnEngineTakesUpWhatAnotherAbandons(t *testing.T) {
	w := newParkedWorld(t)
	l := serve(t, "tcp", "127.0.0.1:0", echo)
	s := durable(spec(t, "unix:"+w.path("front"), "tcp:"+l.Addr().String()))
	s.Name, s.Idle, s.Allow = "web", time.Hour, []model.Allow{{Kind: model.AllowUser, ID: uint32(os.Getuid())}}
	r := w.mustAdd(s)
	c := mustDial(t, r)
	mustSay(t, c, "one")
	mustRead(t, c, "one")
	familytest.Eventually(t, "nothing was counted", func() bool { return w.mustRelay(r.ID).TxBytes == 3 })
	before := w.mustRelay(r.ID)
	w.next()
	require.Equal(t, before, w.mustRelay(r.ID))
	got, ok := w.eng.Spec(r.ID)
	require.True(t, ok)
	require.Equal(t, s, got)
	mustSay(t, c, "two")
	mustRead(t, c, "two")
	require.FileExists(t, w.path("front"))
	other := mustDial(t, r)
	mustSay(t, other, "three")
	mustRead(t, other, "three")
	require.Greater(t, w.eng.Sessions()[1].ID, w.eng.Sessions()[0].ID)
	require.NoError(t, w.eng.Remove(r.ID, 0))
	require.NoFileExists(t, w.path("front"))
	familytest.Eventually(t, "something stayed parked", func() bool { return w.lot.len() == 0 })
}

func TestOtherRelaysKeepTheirListenerNameAndSums(t *testing.T) {
	for _, from := range []string{"tcp:127.0.0.1:0", "unixpacket:@keep-relay", "udp:127.0.0.1:0"} {
		t.Run(from, func(t *testing.T) {
			w := newParkedWorld(t)
			network := mustEndpoint(t, from).Network
			to := map[string]string{"tcp": "tcp:127.0.0.1:1", "unixpacket": "unixpacket:@nobody-there", "udp": "udp:127.0.0.1:1"}[network]
			s := spec(t, from, to)
			s.Name = "other"
			r := w.mustAdd(s)
			w.next()
			w.next()
			again := w.mustRelay(r.ID)
			require.Equal(t, r, again)
			id, ok := w.eng.Lookup("other")
			require.True(t, ok)
			require.Equal(t, r.ID, id)
		})
	}
}

func TestCountersOfARelayOutliveIt(t *testing.T) {
	w := newParkedWorld(t)
	l := serve(t, "tcp", "127.0.0.1:0", echo)
	r := w.mustAdd(spec(t, "tcp:127.0.0.1:0", "tcp:"+l.Addr().String())) // not a durable one
	c := mustDial(t, r)
	mustEcho(t, c, 1000)
	require.NoError(t, l.Close())
	w.mustIdle(r.ID)
	mustBeTurnedAway(t, r)
	before := w.mustIdle(r.ID)
	require.EqualValues(t, 2, before.Total)
	require.EqualValues(t, 1000, before.RxBytes)
	require.EqualValues(t, model.Drops{"dial": 1}, before.Drops)
	w.next()
	after := w.mustRelay(r.ID)
	before.Cause = "" // of the last dial, which nobody remembers
	require.Equal(t, before, after)
}

func TestARemovedRelayIsTakenUpForItsSessions(t *testing.T) {
	w := newParkedWorld(t)
	l := serve(t, "tcp", "127.0.0.1:0", echo)
	r := w.mustAdd(durable(spec(t, "tcp:127.0.0.1:0", "tcp:"+l.Addr().String())))
	c := mustDial(t, r)
	mustSay(t, c, "one")
	mustRead(t, c, "one")
	network, address := endpoint(t, r)
	require.NoError(t, w.eng.Remove(r.ID, -1))
	_, err := net.Dial(network, address)
	require.ErrorIs(t, err, syscall.ECONNREFUSED, "the parked listener still listens")
	w.next()
	require.Equal(t, stateDraining, w.mustRelay(r.ID).State)
	mustSay(t, c, "two")
	mustRead(t, c, "two")
	require.NoError(t, c.(halfCloser).CloseWrite())
	mustEnd(t, c)
	familytest.Eventually(t, "the relay stays", func() bool { return len(w.eng.Relays()) == 0 && w.lot.len() == 0 })
}

func TestAChangeIsParkedToo(t *testing.T) {
	w := newParkedWorld(t)
	r := w.mustAdd(durable(spec(t, "tcp:127.0.0.1:0", "tcp:127.0.0.1:1")))
	l := serve(t, "tcp", "127.0.0.1:0", echo)
	to := []families.Endpoint{mustEndpoint(t, "tcp:"+l.Addr().String())}
	_, err := w.eng.Set(context.Background(), r.ID, model.RelayChange{To: &to})
	require.NoError(t, err)
	w.next()
	c := mustDial(t, r)
	mustSay(t, c, "hello")
	mustRead(t, c, "hello")
}

// A TO that its caller may open, and sockd perhaps not, is dialled through its directory.
func TestTheDirectoryOfATOIsParked(t *testing.T) {
	w := newParkedWorld(t)
	serve(t, "unix", w.path("back"), echo)
	s := durable(spec(t, "tcp:127.0.0.1:0", "unix:"+w.path("back")))
	dir, err := syscall.Open(w.dir, syscall.O_RDONLY|syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	require.NoError(t, err)
	s.ToDirs = []model.DirFD{{FD: dir, Name: "back"}}
	r := w.mustAdd(s)
	w.next()
	c := mustDial(t, r)
	mustSay(t, c, "hello")
	mustRead(t, c, "hello")
	w.next()
	mustSay(t, c, "again")
	mustRead(t, c, "again")
}

// mustBeTurnedAway has a client be reset, perhaps before it knows that it is connected.
func mustBeTurnedAway(tb testing.TB, r model.Relay) {
	tb.Helper()
	network, address := endpoint(tb, r)
	c, err := net.Dial(network, address)
	if err == nil {
		defer c.Close()
		require.NoError(tb, c.SetDeadline(time.Now().Add(deadline)))
		_, err = c.Read(make([]byte, 1))
	}
	if network == "unix" {
		require.Error(tb, err)
		require.NotErrorIs(tb, err, os.ErrDeadlineExceeded)
		return
	}
	require.True(tb, isReset(err), "got %v", err)
}

func TestWhereNoMoreCanBeParked(t *testing.T) {
	for _, from := range []string{"tcp:127.0.0.1:0", "unix:@park-bound"} {
		t.Run(from+" refuses", func(t *testing.T) {
			w := newParkedWorld(t)
			w.lot.most = 1 // the relay
			l := serve(t, "tcp", "127.0.0.1:0", echo)
			r := w.mustAdd(durable(spec(t, from, "tcp:"+l.Addr().String())))
			mustBeTurnedAway(t, r)
			got := w.mustIdle(r.ID)
			require.Equal(t, model.Drops{"unparked": 1}, got.Drops)
			require.Equal(t, "unparked", w.host.mustEvent(t, "relay", "dropped", r.ID).Cause)
		})
		t.Run(from+" goes on without", func(t *testing.T) {
			w := newParkedWorld(t)
			w.lot.most = 1
			l := serve(t, "tcp", "127.0.0.1:0", echo)
			s := spec(t, from, "tcp:"+l.Addr().String())
			s.Durable = model.DurablePrefer
			r := w.mustAdd(s)
			c := mustDial(t, r)
			mustEcho(t, c, 1<<20)
			got := w.mustIdle(r.ID)
			require.Equal(t, model.Drops{"not_durable": 1}, got.Drops)
			require.Equal(t, "not_durable", w.host.mustEvent(t, "relay", "dropped", r.ID).Cause)
		})
	}
}

// stingy parks each session once.
type stingy struct{ *lot }

func (p stingy) Park(rec ParkRecord, fds []int) error {
	if rec.Kind == ParkedSession && len(fds) > 1 {
		return syscall.ETOOMANYREFS
	}
	return p.lot.Park(rec, fds)
}

func TestASessionThatIsParkedByHalves(t *testing.T) {
	for want, prefer := range map[string]string{"refused": model.DurableYes, "echoed": model.DurablePrefer} {
		t.Run(want, func(t *testing.T) {
			w := newParkedWorld(t)
			w.eng = New(Options{Families: all.Set(), Host: w.host, Log: slog.New(slog.DiscardHandler), Parking: stingy{w.lot}})
			t.Cleanup(func() { require.NoError(t, w.eng.Close()) })
			l := serve(t, "tcp", "127.0.0.1:0", echo)
			s := spec(t, "tcp:127.0.0.1:0", "tcp:"+l.Addr().String())
			s.Durable = prefer
			r := w.mustAdd(s)
			if prefer == model.DurableYes {
				mustBeTurnedAway(t, r)
			} else {
				mustEcho(t, mustDial(t, r), 1<<20)
			}
			w.mustIdle(r.ID)
			familytest.Eventually(t, "the session stayed parked", func() bool { return w.lot.len() == 1 })
		})
	}
}

func TestWithoutParkingNothingIsDurable(t *testing.T) {
	w := newWorld(t)
	_, err := w.eng.Add(context.Background(), durable(spec(t, "tcp:127.0.0.1:0", "tcp:127.0.0.1:1")))
	require.ErrorIs(t, err, syscall.EOPNOTSUPP)
	require.ErrorContains(t, err, "--supervise")
}

func TestWhatCannotBeDurable(t *testing.T) {
	w := newWorld(t)
	for _, tc := range []struct {
		name, from, to string
		with           func(*model.RelaySpec)
		want           string
	}{
		{"datagrams", "udp:127.0.0.1:0", "udp:127.0.0.1:1", nil, "udp:127.0.0.1:0 has messages"},
		{"frames", "packet:lo", "packet:lo", nil, "packet:lo has messages"},
		{"framing", "tcp:127.0.0.1:0,framing=u16be", "unixgram:/x", nil, "has framing=, which takes bytes into memory"},
		{"a PROXY header from the client", "tcp:127.0.0.1:0,proxy=accept", "tcp:127.0.0.1:1", nil, "has proxy=, which"},
		{"a PROXY header for TO", "tcp:127.0.0.1:0", "tcp:127.0.0.1:1,proxy=v2", nil, "has proxy=, which"},
		{"an open socket", "id:7", "tcp:127.0.0.1:1", nil, "id:7 is a socket that others opened"},
		{"descriptors", "unix:/a", "unix:/b", func(s *model.RelaySpec) { s.Pass = model.PassRights }, "descriptors that are passed on"},
		{"another word", "unix:/a", "unix:/b", func(s *model.RelaySpec) { s.Durable = "perhaps" }, "want yes or prefer"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := durable(spec(t, tc.from, tc.to))
			if tc.with != nil {
				tc.with(&s)
			}
			require.ErrorContains(t, w.eng.Check(s), tc.want)
		})
	}
}

// Each is told of, leaves the parking, and has no descriptor open.
func TestForeignRecordsAreRefusedAndClosed(t *testing.T) {
	w := newParkedWorld(t)
	relayFile := func(text string) []int {
		fd, err := ksock.SealedFile("test", []byte(text))
		require.NoError(t, err)
		mem, err := ksock.NewMemory("test", ledgerLen)
		require.NoError(t, err)
		defer mem.Close()
		n, err := ksock.Dup(mem.Descriptor())
		require.NoError(t, err)
		return []int{fd, n}
	}
	some := func(n int) (fds []int) {
		for len(fds) < n {
			a, b := mustPair(t)
			fds = append(fds, a.fd, b.fd)
		}
		closeAll(fds[n:])
		return fds[:n]
	}
	valid := sessionRecord{state: parkedOpen, relay: 3}.encode()
	for i, p := range []Parked{
		{ParkRecord{Kind: 99}, some(2)},
		{ParkRecord{Kind: ParkedSession, Data: valid[:5]}, some(6)},
		{ParkRecord{Kind: ParkedSession, Data: valid}, some(5)},
		{ParkRecord{Kind: ParkedSession, Data: valid}, some(6)},
		{ParkRecord{Kind: ParkedRelay, Data: []byte{9}}, some(3)},
		{ParkRecord{Kind: ParkedRelay, Data: []byte{recordVersion}}, some(3)},
		{ParkRecord{Kind: ParkedRelay, Data: []byte{recordVersion}}, relayFile("{")},
		{ParkRecord{Kind: ParkedRelay, Data: []byte{recordVersion}}, relayFile(`{"version":1,"name":"x","draining":true,"spec":{"From":{"Network":"tcp","Address":":1"},"To":[{"Network":"tcp","Address":"127.0.0.1:2"}]}}`)},
	} {
		p.ID = uint64(1000 + i)
		require.NoError(t, w.lot.Park(p.ParkRecord, nil))
		err := w.eng.Restore(context.Background(), []Parked{p})
		require.Error(t, err)
		require.NotEmpty(t, w.host.mustEvent(t, map[bool]string{true: "relay", false: "session"}[p.Kind == ParkedRelay], "failed", model.ID(p.ID)).Cause)
		require.Zero(t, w.lot.len(), "it stays parked")
		for _, fd := range p.FDs {
			require.Equal(t, syscall.EBADF, syscall.Fstat(fd, new(syscall.Stat_t)))
		}
	}
	require.Empty(t, w.eng.Relays())
}

// At each moment one move of bytes may have been made and not written down.
func TestALaneIsSettledByWhatIsInThePipe(t *testing.T) {
	for _, tc := range []struct {
		name            string
		in, out         int64
		held            int
		wantIn, wantOut int64
	}{
		{"nothing was under way", 100, 60, 40, 100, 60},
		{"it was filled", 100, 100, 30, 130, 100},
		{"it was drained", 100, 60, 0, 100, 100},
		{"it was drained in part", 100, 60, 15, 100, 85},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var l lane
			l.in.Store(tc.in)
			l.out.Store(tc.out)
			l.settle(tc.held)
			require.Equal(t, []int64{tc.wantIn, tc.wantOut}, []int64{l.in.Load(), l.out.Load()})
		})
	}
}

func TestALedgerThatAnotherVersionWrote(t *testing.T) {
	l, err := newLedger()
	require.NoError(t, err)
	defer l.mem.Close()
	copy(l.head.names[0][:], "of_the_future\x00\x00\x00") // in the place of the first one
	l.addLost(causeFull, 3)
	l.save(&tally{lost: [numCauses]int64{causeFull: 5, causeDial: 7}}, 1)
	again, err := openLedger(l.mem.Descriptor())
	require.NoError(t, err)
	defer again.mem.Close()
	require.EqualValues(t, numCauses, again.at[causeUnsent], "a cause that is not there is added at the end")
	got := again.load()
	require.EqualValues(t, 5, got.lost[causeFull])
	require.EqualValues(t, 7, got.lost[causeDial])
	require.EqualValues(t, 3, again.head.lost[again.at[causeFull]].Load())
}

// Sessions end by three steps: they leave, their books are saved, their account is free.
func TestBooksOfASessionAreTheRelaysOnce(t *testing.T) {
	end := func(l *ledger, i uint32, steps int) {
		var past tally
		l.account(i).addTo(&past)
		if steps > 0 {
			l.save(&past, 7)
		}
		if steps > 1 {
			l.free(i)
		}
	}
	for steps := range 3 {
		l, err := newLedger()
		require.NoError(t, err)
		i, err := l.take(7, time.Now())
		require.NoError(t, err)
		l.account(i).lanes[0].in.Store(10)
		l.account(i).lanes[0].out.Store(8)
		end(l, i, steps)
		again, err := openLedger(l.mem.Descriptor())
		require.NoError(t, err)
		l.mem.Close()
		past := again.load()
		require.NoError(t, again.sweep(func(uint32, model.ID) bool { return false }, func(a *account, id model.ID) {
			a.addTo(&past)
			again.save(&past, id)
		}))
		require.Equal(t, books{in: amount{bytes: 10}, out: amount{bytes: 8}, lost: amount{bytes: 2}}, past.rx, "after %d steps", steps)
		require.EqualValues(t, 2, past.lost[causeUnsent])
		require.Equal(t, past, again.load())
		j, err := again.take(8, time.Now())
		require.NoError(t, err)
		require.Equal(t, i, j, "the account is not free")
		require.Zero(t, again.account(j).lanes[0].in.Load())
		again.mem.Close()
	}
}

// The urgent byte is sent, written down, and taken. A process that is killed between any
// two of these leaves it to the next.
func TestTheUrgentByteIsSentOnceAfterItIsWrittenDown(t *testing.T) {
	for _, tc := range []struct {
		name     string
		sent     bool // and written down
		taken    bool
		wantSeen string
	}{
		{"before it was sent", false, false, "!behind"},
		{"after it was sent", true, false, "behind"},
		{"after it was taken", true, true, "behind"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newParkedWorld(t)
			l, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			t.Cleanup(func() { _ = l.Close() })
			r := w.mustAdd(durable(spec(t, "tcp:127.0.0.1:0", "tcp:"+l.Addr().String())))
			c := mustDial(t, r)
			mustSay(t, c, "before")
			backend, err := l.Accept()
			require.NoError(t, err)
			t.Cleanup(func() { _ = backend.Close() })
			require.NoError(t, backend.SetDeadline(time.Now().Add(deadline)))
			mustRead(t, backend, "before")
			inline(t, backend)
			familytest.Eventually(t, "it was not counted", func() bool { return w.mustRelay(r.ID).RxBytes == 6 })
			require.NoError(t, w.eng.Abandon())
			mustUrgent(t, c, '!')
			mustSay(t, c, "behind")
			fd := ksock.FD(sessionFD(t, w.lot))
			familytest.Eventually(t, "it did not come", func() bool { n, err := fd.Unread(); return err == nil && n == 7 && fd.AtMark() })
			if tc.sent {
				ledg := w.openLedger(t)
				ledg.account(0).lanes[0].urgent.Store(7)
				ledg.mem.Close()
			}
			if tc.taken {
				n, err := fd.Recv(make([]byte, 1))
				require.NoError(t, err)
				require.Equal(t, 1, n)
			}
			w.renew()
			require.NoError(t, w.eng.Restore(context.Background(), w.lot.take(t)))
			mustRead(t, backend, tc.wantSeen)
			familytest.Eventually(t, "the books are wrong", func() bool { return w.mustRelay(r.ID).RxBytes == 13 })
			require.NoError(t, c.(halfCloser).CloseWrite())
			mustEnd(t, backend)
		})
	}
}

// openLedger is the ledger of the one relay that is parked. The caller closes it.
func (w *parkedWorld) openLedger(tb testing.TB) *ledger {
	tb.Helper()
	for _, p := range w.lot.held {
		if p.Kind == ParkedRelay {
			l, err := openLedger(p.FDs[1])
			require.NoError(tb, err)
			return l
		}
	}
	tb.Fatal("no relay is parked")
	return nil
}

func inline(tb testing.TB, c net.Conn) {
	tb.Helper()
	rc, err := c.(*net.TCPConn).SyscallConn()
	require.NoError(tb, err)
	require.NoError(tb, rc.Control(func(fd uintptr) { ksock.FD(fd).Tune(ksock.RelayedTCP) }))
}

// What the process before had begun to do to a session is done.
func TestTheFateOfASessionIsCarriedOut(t *testing.T) {
	for _, tc := range []struct {
		name string
		fate int64
		want func(error) bool
	}{
		{"it was being reset", fateReset, isReset},
		{"it was being closed", fateEnded, func(err error) bool { return err == io.EOF }},
		{"it goes on", fateLive, func(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newParkedWorld(t)
			l := serve(t, "tcp", "127.0.0.1:0", echo)
			r := w.mustAdd(durable(spec(t, "tcp:127.0.0.1:0", "tcp:"+l.Addr().String())))
			c := mustDial(t, r)
			mustSay(t, c, "hello")
			mustRead(t, c, "hello")
			require.NoError(t, w.eng.Abandon())
			ledg := w.openLedger(t)
			ledg.account(0).fate.Store(tc.fate)
			ledg.mem.Close()
			w.renew()
			require.NoError(t, w.eng.Restore(context.Background(), w.lot.take(t)))
			if tc.fate == fateLive {
				require.NoError(t, c.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
			} else {
				w.mustIdle(r.ID)
			}
			_, err := c.Read(make([]byte, 1))
			require.True(t, tc.want(err), "got %v", err)
		})
	}
}

// A session that is closed by a caller ends for both sides although it is parked.
func TestACloseEndsWhatIsParked(t *testing.T) {
	w := newParkedWorld(t)
	ended := make(chan error, 1)
	l := serve(t, "unix", w.path("back"), func(c net.Conn) {
		_, err := io.Copy(io.Discard, struct{ io.Reader }{c})
		ended <- err
	})
	r := w.mustAdd(durable(spec(t, "tcp:127.0.0.1:0", "unix:"+l.Addr().String())))
	c := mustDial(t, r)
	mustSay(t, c, "hello")
	familytest.Eventually(t, "no byte passed", func() bool { return w.mustRelay(r.ID).RxBytes == 5 })
	held := w.lot.take(t) // as a lot that has not turned over yet
	defer func() {
		for _, p := range held {
			closeAll(p.FDs)
		}
	}()
	require.NoError(t, w.eng.CloseSession(w.eng.Sessions()[0].ID))
	_, err := c.Read(make([]byte, 1))
	require.True(t, isReset(err), "got %v", err)
	require.NoError(t, <-ended)
}

func FuzzSessionRecord(f *testing.F) {
	f.Add(sessionRecord{state: parkedDialling, account: 5, relay: 1 << 40}.encode(), 1)
	f.Add(sessionRecord{state: parkedOpen, account: ledgerAccounts - 1, backend: 1 << 31, relay: 1}.encode(), 6)
	f.Add([]byte{}, 0)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		r, err := parseSession(b, n)
		if err != nil {
			require.Equal(t, sessionRecord{}, r)
			return
		}
		require.Equal(t, b, r.encode())
		require.LessOrEqual(t, len(b), MaxParkData)
	})
}

func FuzzParkedRelay(f *testing.F) {
	text, err := json.Marshal(parkedRelay{Version: recordVersion, Name: "x", Listener: true, Spec: model.RelaySpec{To: make([]families.Endpoint, 1)}, Dirs: []parkedDir{{0, "a"}}})
	require.NoError(f, err)
	f.Add(text, 4)
	f.Add(bytes.Replace(text, []byte(`"to":0`), []byte(`"to":-1`), 1), 4)
	f.Add([]byte("null"), 2)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		w, err := parseRelay(b, n)
		if err != nil {
			require.Equal(t, parkedRelay{}, w)
			return
		}
		require.Len(t, w.dirsOf(make([]int, n)), map[bool]int{true: len(w.Spec.To)}[len(w.Dirs) > 0])
		again, err := json.Marshal(w)
		require.NoError(t, err)
		back, err := parseRelay(again, n)
		require.NoError(t, err)
		require.Equal(t, w.Name, back.Name)
		require.Equal(t, w.Dirs, back.Dirs)
	})
}
