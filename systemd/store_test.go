package systemd

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/sockd/sockd/systemd/systemdtest"
)

// mustNextFDs returns the next datagram and the descriptors that came with it, as
// files that the test closes.
func (m *manager) mustNextFDs() (string, []*os.File) {
	m.tb.Helper()
	require.NoError(m.tb, m.conn.SetReadDeadline(time.Now().Add(patience)))
	buf, oob := make([]byte, 8192), make([]byte, unix.CmsgSpace(4*maxSent))
	n, oobn, flags, _, err := m.conn.ReadMsgUnix(buf, oob)
	require.NoError(m.tb, err)
	require.Zero(m.tb, flags&unix.MSG_CTRUNC)
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	require.NoError(m.tb, err)
	var files []*os.File
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		require.NoError(m.tb, err)
		for _, fd := range fds {
			require.NoError(m.tb, unix.SetNonblock(fd, true))
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return string(buf[:n]), files
}

func mustClose(tb testing.TB, files ...*os.File) {
	tb.Helper()
	for _, f := range files {
		require.NoError(tb, f.Close())
	}
}

// mustPipe makes a bare pipe that the test closes.
func mustPipe(t *testing.T) (r, w int) {
	t.Helper()
	var p [2]int
	require.NoError(t, unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK))
	t.Cleanup(func() { _, _ = unix.Close(p[0]), unix.Close(p[1]) })
	return p[0], p[1]
}

func TestStoreSendsDescriptorsUnderAName(t *testing.T) {
	for name, socket := range map[string]string{
		"to a path":             filepath.Join(t.TempDir(), "notify"),
		"to an abstract socket": "@sockd-store-test",
	} {
		t.Run(name, func(t *testing.T) {
			m, n := mustManage(t, socket), mustNotifier(t, socket, 0)
			r, w := mustPipe(t)
			require.NoError(t, n.Store("lot0", r, w))

			message, files := m.mustNextFDs()
			require.Equal(t, "FDSTORE=1\nFDPOLL=0\nFDNAME=lot0", message)
			require.Len(t, files, 2)
			_, err := files[1].WriteString("the same pipe")
			require.NoError(t, err)
			got := make([]byte, 64)
			k, err := unix.Read(r, got)
			require.NoError(t, err)
			require.Equal(t, "the same pipe", string(got[:k]))
			mustClose(t, files...)

			require.NoError(t, n.Remove("lot0"))
			message, files = m.mustNextFDs()
			require.Equal(t, "FDSTOREREMOVE=1\nFDNAME=lot0", message)
			require.Empty(t, files)
		})
	}
}

func TestBarrierWaitsForTheManager(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	socket := filepath.Join(t.TempDir(), "notify")
	m, n := mustManage(t, socket), mustNotifier(t, socket, 0)
	done := make(chan error, 1)
	go func() { done <- n.Barrier(t.Context()) }()

	message, files := m.mustNextFDs()
	require.Equal(t, "BARRIER=1", message)
	require.Len(t, files, 1, "systemd takes exactly one")
	select {
	case err := <-done:
		t.Fatalf("returned before the manager let go: %v", err)
	default:
	}
	mustClose(t, files...)
	require.NoError(t, <-done)
}

func TestBarrierGivesUpWithItsContext(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	socket := filepath.Join(t.TempDir(), "notify")
	mustManage(t, socket)
	n := mustNotifier(t, socket, 0)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("no time")
	cancel(why)
	err := n.Barrier(ctx)
	require.ErrorIs(t, err, why)
	require.ErrorContains(t, err, "wait for service manager: ")
}

func TestStoreSaysWhyNot(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	mustManage(t, socket)
	here := mustNotifier(t, socket, 0)
	nobody := &Notifier{socket: filepath.Join(t.TempDir(), "nobody")}
	r, _ := mustPipe(t)
	for _, tt := range []struct {
		name string
		err  error
		want error // nil: any
		says string
	}{
		{"no manager to store", (&Notifier{}).Store("a", r), errors.ErrUnsupported, `store descriptors "a": no service manager`},
		{"no manager to remove", (&Notifier{}).Remove("a"), errors.ErrUnsupported, `remove stored descriptors "a": `},
		{"no manager to wait for", (&Notifier{}).Barrier(t.Context()), errors.ErrUnsupported, "wait for service manager: "},
		{"a manager that is gone", nobody.Store("a", r), os.ErrNotExist, "sendmsg: "},
		{"no descriptor", here.Store("a"), nil, "0 of them"},
		{"too many descriptors", here.Store("a", make([]int, 254)...), nil, "254 of them"},
		{"a closed descriptor", here.Store("a", -1), unix.EBADF, "sendmsg: "},
		{"no name", here.Store("", r), nil, `name ""`},
		{"a name with a colon", here.Store("a:b", r), nil, `name "a:b"`},
		{"a name that says more", here.Store("a\nMAINPID=1", r), nil, `name "a\nMAINPID=1"`},
		{"a name that is too long", here.Remove(strings.Repeat("x", 256)), nil, "want 1 to 255"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			require.ErrorContains(t, tt.err, tt.says)
			if tt.want != nil {
				require.ErrorIs(t, tt.err, tt.want)
			}
		})
	}
}

// storing is the test binary as a service that stores two pipes at its first start,
// and says in its status what came back at each later one.
func storing() int {
	files, err := Files()
	n := &Notifier{socket: os.Getenv("NOTIFY_SOCKET")}
	said := "stored"
	if err == nil && len(files) == 0 {
		err = storePipes(n)
	} else if err == nil {
		said, err = cameBack(files)
	}
	if err = errors.Join(err, n.Ready(said)); err != nil {
		_, _ = os.Stderr.WriteString(err.Error() + "\n") // to the journal
		return 1
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	<-signals
	return 0
}

// storePipes stores a pipe with bytes in it, both ends under one name, an end of
// which the other is gone, and one that is removed at once.
func storePipes(n *Notifier) error {
	var full, broken, other [2]int
	for _, p := range []*[2]int{&full, &broken, &other} {
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			return err
		}
	}
	if _, err := unix.Write(full[1], []byte("bytes in flight")); err != nil {
		return err
	}
	if err := unix.Close(broken[0]); err != nil { // EPOLLERR from now on: FDPOLL=0 keeps it
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return errors.Join(n.Store("full", full[:]...), n.Store("broken", broken[1]),
		n.Store("other", other[:]...), n.Remove("other"), n.Barrier(ctx))
}

// cameBack says which names came back, and what is in the pipe, which it leaves as
// it was.
func cameBack(files []File) (string, error) {
	var names, bytes []string
	write := -1
	for _, f := range files {
		names = append(names, f.Name)
		flags, err := unix.FcntlInt(uintptr(f.FD), unix.F_GETFL, 0)
		if err != nil {
			return "", err
		}
		buf := make([]byte, 64)
		switch {
		case f.Name == "full" && flags&unix.O_ACCMODE == unix.O_WRONLY:
			write = f.FD
		case f.Name == "full":
			n, err := unix.Read(f.FD, buf)
			if err != nil {
				return "", err
			}
			bytes = append(bytes, string(buf[:n]))
		}
	}
	slices.Sort(names)
	text := strings.Join(bytes, ",")
	_, err := unix.Write(write, []byte(text))
	return strings.Join(names, " ") + ": " + text, err
}

// TestARealSystemdKeepsWhatIsStored kills the service twice.
func TestARealSystemdKeepsWhatIsStored(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	program, err := os.ReadFile(self)
	require.NoError(t, err)
	tree := t.TempDir()
	require.NoError(t, os.WriteFile(tree+"/storing", program, 0o755))
	m := systemdtest.Boot(t, tree)
	m.WriteFile("/etc/systemd/system/storing.service", `[Unit]
StartLimitIntervalSec=0
[Service]
Type=notify
NotifyAccess=main
Environment=`+childEnv+`=store
ExecStart=/storing
Restart=always
RestartSec=50ms
FileDescriptorStoreMax=8
`)
	m.Run("systemctl", "daemon-reload")
	m.Run("systemctl", "start", "storing.service")
	require.Equal(t, "stored", m.Property("storing.service", "StatusText"))
	require.Equal(t, "3", m.Property("storing.service", "NFileDescriptorStore"), "what was removed is not held")

	for range 2 {
		before := m.MainPID("storing.service")
		m.Signal(before, "KILL")
		m.Until("the service is back", func() bool {
			pid := m.MainPID("storing.service")
			return pid != 0 && pid != before && m.Property("storing.service", "ActiveState") == "active"
		})
		require.Equal(t, "broken full full: bytes in flight", m.Property("storing.service", "StatusText"))
	}
}
