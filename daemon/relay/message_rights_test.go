package relay

import (
	"io"
	"os"
	"testing"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
	"github.com/stretchr/testify/require"
)

// rights is parties with --pass rights.
func rights(t *testing.T, from, to string) *meeting {
	t.Helper()
	m := &meeting{world: newWorld(t)}
	ep := m.backend(mustEndpoint(t, to+":"+m.anyAddress(to, sideTo)))
	s := spec(t, from+":"+m.anyAddress(from, sideFrom), ep.String())
	s.Pass = model.PassRights
	m.relay = m.mustAdd(s)
	m.near = m.client(m.relay.Local[0])
	return m
}

// mustText is an open file with a text in it and no name left.
func mustText(tb testing.TB, text string) *os.File {
	tb.Helper()
	f, err := os.CreateTemp(tb.TempDir(), "file")
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = f.Close() })
	require.NoError(tb, os.Remove(f.Name()))
	_, err = f.WriteString(text)
	require.NoError(tb, err)
	return f
}

// send sends a message with files.
func (m *meeting) send(s families.Socket, to families.Name, text string, files ...*os.File) {
	m.tb.Helper()
	var fds []int
	var hold func(rest []*os.File) error
	hold = func(rest []*os.File) error {
		if len(rest) == 0 {
			_, err := families.SendAll(within(m.tb), s, &families.Msg{Data: []byte(text), Peer: to, Files: fds})
			return err
		}
		return withFD(rest[0], func(fd int) error {
			fds = append(fds, fd)
			return hold(rest[1:])
		})
	}
	require.NoError(m.tb, hold(files))
}

// hearFiles receives a message and reads what its descriptors lead to.
func (m *meeting) hearFiles(s families.Socket, want string) (contents []string) {
	m.tb.Helper()
	msg := families.Msg{Data: make([]byte, 100)}
	require.NoError(m.tb, families.RecvWait(within(m.tb), s, &msg))
	m.farPeer = msg.Peer
	require.Equal(m.tb, want, string(msg.Data))
	for _, fd := range msg.Files {
		f := os.NewFile(uintptr(fd), "received")
		text, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<10))
		require.NoError(m.tb, err)
		require.NoError(m.tb, f.Close())
		contents = append(contents, string(text))
	}
	return contents
}

func TestDescriptorsPassWithTheirMessages(t *testing.T) {
	for _, pair := range [][2]string{{"unixgram", "unixgram"}, {"unixpacket", "unixpacket"}, {"unixgram", "unixpacket"}, {"unixpacket", "unixgram"}} {
		t.Run(pair[0]+" to "+pair[1], func(t *testing.T) {
			m := rights(t, pair[0], pair[1])
			one, two := mustText(t, "one"), mustText(t, "two")
			for range 2 { // while it is dialled, and then
				m.send(m.near, families.Name{}, "there", one, two)
				m.meetFar()
				require.Equal(t, []string{"one", "two"}, m.hearFiles(m.far, "there"))
				peer := m.farPeer
				if pair[1] == "unixpacket" {
					peer = families.Name{}
				}
				m.send(m.far, peer, "back", two)
				require.Equal(t, []string{"two"}, m.hearFiles(m.near, "back"))
			}
			m.send(m.near, families.Name{}, "none")
			require.Empty(t, m.hearFiles(m.far, "none"))
			require.Empty(t, m.mustRelay(m.relay.ID).Drops)
		})
	}
}

// Where a message goes on and its descriptors cannot, or is lost with them, they
// are closed and counted.
func TestDescriptorsThatCannotPassAreCounted(t *testing.T) {
	t.Run("to a fanout", func(t *testing.T) {
		m := &meeting{world: newWorld(t)}
		ep := m.backend(mustEndpoint(t, "unixgram:"+m.path("to")))
		s := spec(t, "unixpacket:"+m.path("from"), ep.String())
		s.Pass, s.Balance = model.PassRights, balanceFanout
		m.relay = m.mustAdd(s)
		m.near = m.client(m.relay.Local[0])
		m.send(m.near, families.Name{}, "look", mustText(t, "one"))
		require.Empty(t, m.hearFiles(m.far, "look"))
		m.send(m.far, m.farPeer, "seen", mustText(t, "two"), mustText(t, "three"))
		require.Empty(t, m.hearFiles(m.near, "seen"))
		familytest.Eventually(t, "they are not counted", func() bool { return m.mustRelay(m.relay.ID).Drops["files"] == 3 })
	})
	t.Run("in a framed stream", func(t *testing.T) {
		m := &meeting{world: newWorld(t)}
		ep := m.backend(mustEndpoint(t, "unixgram:"+m.path("to")))
		m.relay = m.mustAdd(spec(t, "unix:"+m.path("from")+",framing=lf", ep.String()))
		m.near = m.client(m.relay.Local[0])
		m.send(m.near, families.Name{}, "look\n", mustText(t, "one"))
		m.hear(m.far, []byte("look"))
		require.EqualValues(t, 1, m.mustRelay(m.relay.ID).Drops["files"])
	})
	t.Run("with a message that waited for its dial in vain", func(t *testing.T) {
		m := rights(t, "unixgram", "unixgram")
		require.NoError(t, m.far.Close())
		m.send(m.near, families.Name{}, "look", mustText(t, "one"), mustText(t, "two"))
		familytest.Eventually(t, "they are not counted", func() bool {
			d := m.mustRelay(m.relay.ID).Drops
			return d["dial"] == 1 && d["files"] == 2
		})
	})
	t.Run("with a message that is too long", func(t *testing.T) {
		m := rights(t, "unixgram", "unixgram")
		o, err := families.As[families.Optioner](m.near)
		require.NoError(t, err)
		require.NoError(t, o.SetOption("so_sndbufforce", "2M"))
		m.send(m.near, families.Name{}, string(make([]byte, messageRoom+1)), mustText(t, "one"))
		m.say(m.near, families.Name{}, []byte("next"))
		m.hear(m.far, []byte("next"))
		require.Equal(t, model.Drops{"cut": 1, "files": 1}, m.mustRelay(m.relay.ID).Drops)
	})
	t.Run("without --pass", func(t *testing.T) {
		m := parties(t, "unixpacket", "unixpacket")
		m.send(m.near, families.Name{}, "look", mustText(t, "one"))
		m.meetFar()
		require.Empty(t, m.hearFiles(m.far, "look"))
		familytest.Eventually(t, "it is not counted", func() bool { return m.mustRelay(m.relay.ID).Drops["files"] == 1 })
	})
}
