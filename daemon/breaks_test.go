package daemon

import (
	"context"
	"math"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet"
)

// A caller that was killed was taken for one whose stdin had ended: its peer got
// FIN, and the socket stayed attached until the peer ended.
func TestACallerThatIsKilledFreesItsSocketAndEndsNothing(t *testing.T) {
	d := newDaemon(t)
	client, server := pair(t, d)
	_, caller, ended := attached(t, d, model.AttachSpec{ID: client, FD: model.NoFD})
	_, err := caller.Write([]byte("sent before"))
	require.NoError(t, err)
	require.NoError(t, caller.Close())
	require.NoError(t, within(t, "attach did not end with its caller", ended))
	require.Equal(t, "sent before", mustRecv(t, d, server))
	require.Equal(t, "connected", mustShow(t, d, server).State, "no FIN came")
	mustSend(t, d, client, "free for others")
	require.Equal(t, "free for others", mustRecv(t, d, server))
}

// The same for a caller who had ended its stdin, waits, and is killed then: only
// the hang-up tells.
func TestACallerThatIsKilledWhileItWaits(t *testing.T) {
	d := newDaemon(t)
	client, server := pair(t, d)
	a, err := d.Attach(testContext(t), me, model.AttachSpec{ID: client, FD: model.NoFD})
	require.NoError(t, err)
	mine, caller := unixPair(t)
	gone, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- a.Run(context.Background(), mine, gone) }()
	require.NoError(t, caller.CloseWrite())
	m, err := recv(t, d, server)
	require.NoError(t, err)
	require.True(t, m.EOF, "what the caller meant")
	require.NoError(t, caller.Close())
	close(gone)
	require.NoError(t, within(t, "attach did not end with its caller", ended))
	mustSend(t, d, server, "answer")
	require.Equal(t, "answer", mustRecv(t, d, client), "the socket is free again")
}

// A peer that does not read holds the socket no longer than it takes to see that.
func TestWhatASilentPeerDoesNotTakeOfAKilledCallerIsCounted(t *testing.T) {
	d := newDaemon(t)
	client, _ := pair(t, d)
	a, err := d.Attach(testContext(t), me, model.AttachSpec{ID: client, FD: model.NoFD})
	require.NoError(t, err)
	mine, caller := unixPair(t)
	gone, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- a.Run(context.Background(), mine, gone) }()
	go func() { _, _ = caller.Write(make([]byte, 16<<20)) }() // until it is closed
	awaitWaiters(t, d, client, 3)                             // the attachment as a whole, and each of its directions
	require.NoError(t, caller.Close())
	close(gone)
	require.NoError(t, within(t, "attach did not end with its caller", ended))
	require.Equal(t, int64(1), mustShow(t, d, client).Drops["unsent"])
}

// A stream without a peer took the caller's bytes and lost them without a word.
func TestAttachNeedsAConnection(t *testing.T) {
	d := newDaemon(t)
	for _, kind := range [][2]string{{"inet", "stream"}, {"local", "stream"}, {"local", "seqpacket"}} {
		id := mustOpen(t, d, kind[0], kind[1])
		_, err := d.Attach(testContext(t), me, model.AttachSpec{ID: id, FD: model.NoFD})
		require.ErrorIs(t, err, syscall.ENOTCONN, kind)
	}
	e, err := families.ParseEndpoint("unix:/run/app.sock")
	require.NoError(t, err)
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	_, err = d.Attach(testContext(t), me, model.AttachSpec{Endpoint: &e, FD: fd})
	require.ErrorIs(t, err, syscall.ENOTCONN)
	require.NoError(t, syscall.Close(fd), "it is still the caller's")
	udp := mustOpen(t, d, "inet", "dgram")
	a, err := d.Attach(testContext(t), me, model.AttachSpec{ID: udp, FD: model.NoFD})
	require.NoError(t, err, "a datagram socket receives without one")
	require.NoError(t, a.Close())
}

func TestShutdownOfBothWorksAfterThePeerHasEnded(t *testing.T) {
	d := newDaemon(t)
	client, server := pair(t, d)
	_, err := d.Shutdown(t.Context(), me, server, "wr")
	require.NoError(t, err)
	m, err := recv(t, d, client)
	require.NoError(t, err)
	require.True(t, m.EOF)
	_, err = d.Shutdown(t.Context(), me, client, "both")
	require.NoError(t, err)
}

// localPair are two unix sockets that are connected, with queues for long messages.
func localPair(t *testing.T, d *Daemon, typ string) (a, b model.ID) {
	t.Helper()
	kinds := map[string]int{"dgram": syscall.SOCK_DGRAM, "seqpacket": syscall.SOCK_SEQPACKET}
	fds, err := syscall.Socketpair(syscall.AF_UNIX, kinds[typ]|syscall.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	var ids [2]model.ID
	for i, fd := range fds {
		v, err := d.Open(testContext(t), me, "local", typ, 0, "", fd)
		require.NoError(t, err)
		size := "4M"
		_, err = d.Options(testContext(t), me, v.ID, []model.Option{{Name: "so_sndbufforce", Value: &size}})
		if err != nil { // it is set, and cannot be read
			require.ErrorIs(t, err, families.ErrSyntax)
		}
		ids[i] = v.ID
	}
	return ids[0], ids[1]
}

// What a message had beyond 512 KiB was lost.
func TestALongMessageIsTakenWholeOrNotAtAll(t *testing.T) {
	familytest.Need(t, familytest.Root())
	const inline = 512 << 10
	long := strings.Repeat("0123456789", 70000)
	for _, typ := range []string{"dgram", "seqpacket"} {
		t.Run(typ, func(t *testing.T) {
			d := newDaemon(t)
			a, b := localPair(t, d, typ)
			mustSend(t, d, a, long)
			for range 2 {
				_, undo, err := d.Recv(testContext(t), me, b, model.RecvSpec{Room: inline})
				require.ErrorIs(t, err, syscall.EMSGSIZE)
				require.Nil(t, undo, "it was not taken")
			}
			m, undo, err := d.Recv(testContext(t), me, b, model.RecvSpec{})
			require.NoError(t, err)
			require.True(t, long == string(m.Data))
			require.False(t, m.Cut)
			undo()
			_, _, err = d.Recv(testContext(t), me, b, model.RecvSpec{Room: inline})
			require.ErrorIs(t, err, syscall.EMSGSIZE, "nor is it when it came back")
			m, undo, err = d.Recv(testContext(t), me, b, model.RecvSpec{Max: 600000})
			require.NoError(t, err)
			require.Len(t, m.Data, 600000)
			require.Equal(t, len(long), m.Full)
			require.True(t, m.Cut)
			undo()
			require.True(t, long == mustRecv(t, d, b))

			mustSend(t, d, a, long)
			m, _, err = d.Recv(testContext(t), me, b, model.RecvSpec{Max: 600000})
			require.NoError(t, err)
			require.Len(t, m.Data, 600000)
			require.Equal(t, len(long), m.Full, "asked for, it is cut")

			mustSend(t, d, a, long)
			_, caller, ended := attached(t, d, model.AttachSpec{ID: b, FD: model.NoFD})
			require.True(t, long == mustRead(t, caller, len(long)), "attach brings it whole")
			require.NoError(t, caller.Close())
			require.NoError(t, within(t, "attach did not end", ended))
		})
	}
}

// A look at the length must not take what came with the message.
func TestALookAtAMessageKeepsItsDescriptors(t *testing.T) {
	d := newDaemon(t)
	a, b := localPair(t, d, "dgram")
	k, err := d.table.get(a)
	require.NoError(t, err)
	_, err = families.SendAll(t.Context(), k.s, &families.Msg{Data: []byte("x"), Files: []int{0, 1}})
	require.NoError(t, err)
	require.Equal(t, "x", mustRecv(t, d, b))
	require.Equal(t, int64(2), mustShow(t, d, b).Drops["rights"], "each once")
}

// TCP and seqpacket sockets pass over the receiver's name, and the data went to
// the peer.
func TestAConnectedSocketTakesNoReceiver(t *testing.T) {
	d := newDaemon(t)
	tcp, _ := pair(t, d)
	_, err := d.Send(testContext(t), me, tcp, []byte("x"), "127.0.0.1:9")
	require.ErrorIs(t, err, syscall.EISCONN)
	seq, _ := localPair(t, d, "seqpacket")
	_, err = d.Send(testContext(t), me, seq, []byte("x"), filepath.Join(t.TempDir(), "other"))
	require.ErrorIs(t, err, syscall.EISCONN)
}

// It said `send packet "#-1": no such device or address`.
func TestAReceiverThatIsNotThereIsNamedAsItWasWritten(t *testing.T) {
	familytest.Need(t, familytest.Root())
	d := newDaemon(t, func(o *Options) { o.Families = append(families.Set{packet.Family}, set...) })
	id := mustOpen(t, d, "packet", "raw")
	_, err := d.Send(testContext(t), me, id, make([]byte, 60), "nope0")
	require.ErrorIs(t, err, syscall.ENODEV)
	require.EqualError(t, err, `send packet "nope0": no such device`)
}

// Larger numbers were cut to 32 bits and opened as something else.
func TestAProtocolIsASmallNumber(t *testing.T) {
	d := newDaemon(t)
	for _, tt := range []struct {
		family, typ string
		protocol    int
	}{
		{"inet", "stream", 1<<32 + 6}, {"inet", "stream", -1}, {"inet", "raw", 256}, {"inet6", "raw", 1 << 16}, {"local", "stream", 1 << 32}, {"inet", "dgram", math.MaxInt},
	} {
		_, err := d.Open(testContext(t), me, tt.family, tt.typ, tt.protocol, "", model.NoFD)
		require.ErrorIs(t, err, families.ErrSyntax, "%+v", tt)
	}
	_, err := d.Open(testContext(t), me, "inet", "stream", 6, "", model.NoFD)
	require.NoError(t, err)
}

// Counts were added as they came, until the counters were negative.
func TestWhatABorrowerSaysItSentIsPlausible(t *testing.T) {
	d := newDaemon(t)
	id := mustOpen(t, d, "local", "dgram")
	for _, tt := range []struct {
		done            string
		bytes, messages int64
	}{
		{"send", -1, 1}, {"send", 1, -1}, {"send", math.MaxInt64, 1}, {"send", 1, math.MaxInt64}, {"send", 1, 0},
		{"send", model.MaxMessage + 1, 1}, {"bind", 1, 0}, {"listen", 0, 1},
	} {
		_, err := d.Return(testContext(t), me, id, tt.done, tt.bytes, tt.messages)
		require.ErrorIs(t, err, families.ErrSyntax, "%+v", tt)
	}
	v, err := d.Return(testContext(t), me, id, "send", 2*model.MaxMessage, 2)
	require.NoError(t, err)
	require.Equal(t, []int64{2 * model.MaxMessage, 2}, []int64{v.TxBytes, v.TxMessages})
}

// stuck is a family whose sockets cannot be closed until the test lets them.
type stuck struct {
	families.Family
	free chan struct{}
}

func (f stuck) Open(ctx context.Context, spec families.Spec) (families.Socket, error) {
	s, err := f.Family.Open(ctx, spec)
	return stuckSocket{s, f.free}, err
}

type stuckSocket struct {
	families.Socket
	free chan struct{}
}

func (s stuckSocket) Close() error {
	<-s.free
	return s.Socket.Close()
}

// One call that the kernel held kept SIGTERM from ending sockd.
func TestStopDoesNotWaitForEverForWhatDoesNotEnd(t *testing.T) {
	family, err := set.Family("inet")
	require.NoError(t, err)
	held := make(chan struct{})
	free := sync.OnceFunc(func() { close(held) })
	d := newDaemon(t, func(o *Options) { o.Families = families.Set{stuck{family, held}} })
	defer free()
	d.stopTime = 50 * time.Millisecond
	mustOpen(t, d, "inet", "stream")
	ended := make(chan error, 1)
	go func() { ended <- d.Stop() }()
	require.ErrorIs(t, within(t, "stop hangs", ended), ErrStuck)
	require.ErrorIs(t, d.Stop(), ErrStuck, "a second time")
	d.stopTime = patience
	free()
	require.NoError(t, d.Stop(), "when it does end")
}
