package acceptance

import (
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/families"
)

// awkward are names of files that a path may have.
var awkward = []string{"a,b", `back\slash`, `not\x1ban escape`, "line\nfeed", "\x1b[31mred", "\xff\xfe", "lost \ufffd", "turned \u202e", "two  spaces", "c1 \u0085", "@at", "ünï"}

// Addresses had two layers of escapes, of which not every verb knew both, and JSON
// replaced what is no UTF-8: what one verb printed named another file to the next.
func TestWhatIsPrintedOfAPathNamesTheSameFile(t *testing.T) {
	s := start(t, nil)
	for i, name := range awkward {
		t.Run(families.Escape(name), func(t *testing.T) {
			dir, err := os.MkdirTemp("", "s")
			require.NoError(t, err)
			defer os.RemoveAll(dir)
			path := filepath.Join(dir, name)
			want := families.Escape(path)
			typed := want
			if i%2 == 1 && !strings.Contains(name, `\`) {
				typed = path // bytes may stand for themselves
			}
			server := s.run("open", "local", "stream")
			require.Equal(t, want, s.run("bind", server, typed))
			require.NoError(t, isSocket(path))
			s.run("listen", server)
			require.Equal(t, want, s.run("show", server, "-o", "local", "--no-header"))
			var shown struct{ Local string }
			require.NoError(t, json.Unmarshal([]byte(s.run("show", server, "--json")), &shown))
			require.Equal(t, want, shown.Local)

			client := s.run("open", "local", "stream")
			s.run("connect", client, typed)
			require.Equal(t, want, s.run("show", client, "-o", "peer", "--no-header"))
			s.run("accept", server)

			s.testAttach(t, server, want)
			s.testRelay(t, dir, server, want)
			s.testSend(t, dir, name)
		})
	}
}

func isSocket(path string) error {
	info, err := os.Lstat(path)
	if err == nil && info.Mode().Type() != os.ModeSocket {
		err = os.ErrInvalid
	}
	return err
}

// testAttach attaches to the endpoint of what server is bound to.
func (s *sockd) testAttach(t *testing.T, server, printed string) {
	t.Helper()
	c := s.ctl("attach", "unix:"+printed)
	c.Stdin = strings.NewReader("attached")
	require.NoError(t, c.Start())
	conn := strings.Fields(s.run("accept", server))[0]
	require.Equal(t, "attached", s.run("recv", conn))
	s.run("close", conn)
	require.NoError(t, c.Wait())
}

// testRelay relays from one awkward path to another, twice: as it was typed, and by
// the command that the relay says makes it again.
func (s *sockd) testRelay(t *testing.T, dir, server, printed string) {
	t.Helper()
	front := filepath.Join(dir, "front "+filepath.Base(dir)+"\xfe,")
	_, address, ok := strings.Cut(s.run("relay", "add", "r", "unix:"+families.Escape(front), "unix:"+printed), " ")
	require.True(t, ok)
	require.Equal(t, "unix:"+families.Escape(front), address)
	s.talkThrough(t, front, server, printed)
	var shown struct{ From, To any }
	require.NoError(t, json.Unmarshal([]byte(s.run("relay", "show", "r", "--json")), &shown))
	require.Equal(t, "unix:"+families.Escape(front), shown.From)
	require.Equal(t, []any{"unix:" + printed}, shown.To)
	require.Contains(t, s.run("relay", "show", "r", "--command"), printed)
	s.run("relay", "set", "r", "--to", "unix:"+printed)
	s.talkThrough(t, front, server, printed)
	s.run("relay", "rm", "r", "--now")
}

func (s *sockd) talkThrough(t *testing.T, front, server, printed string) {
	t.Helper()
	c, err := net.Dial("unix", front)
	require.NoError(t, err)
	defer c.Close()
	_, err = io.WriteString(c, "relayed")
	require.NoError(t, err)
	conn := strings.Fields(s.run("accept", server))[0]
	require.Equal(t, "relayed", s.run("recv", conn))
	require.Contains(t, s.run("ls", "sessions", "-o", "backend", "--no-header"), "unix:"+printed)
	s.run("close", conn)
	require.NoError(t, c.SetReadDeadline(time.Now().Add(patience)))
	_, err = c.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
}

// testSend sends a datagram to an awkward path, from another one.
func (s *sockd) testSend(t *testing.T, dir, name string) {
	t.Helper()
	to, from := s.run("open", "local", "dgram"), s.run("open", "local", "dgram")
	printed := s.run("bind", to, families.Escape(filepath.Join(dir, "to"+name)))
	sender := s.run("bind", from, families.Escape(filepath.Join(dir, "from"+name)))
	s.run("send", "--to", printed, from, "hello")
	var got struct{ From string }
	require.NoError(t, json.Unmarshal([]byte(s.run("recv", "--json", to)), &got))
	require.Equal(t, sender, got.From)
	s.run("send", "--to", got.From, to, "back")
	require.Equal(t, "back", s.run("recv", from))
}

// An address that cannot be one was exit 2 in one verb and exit 8 in another, and a
// path in an error line had its escapes written once more.
func TestAnAddressThatCannotBeOneIsAUsageError(t *testing.T) {
	s := start(t, nil)
	id := s.run("open", "local", "stream")
	long, name := "/tmp/"+strings.Repeat("x", 104), "@"+strings.Repeat("x", 108)
	for _, addr := range []string{long, name, `/tmp/\q`} {
		for _, line := range [][]string{
			{"bind", id, addr}, {"connect", id, addr}, {"send", "--to", addr, id, "x"}, {"attach", "unix:" + addr},
			{"relay", "add", "unix:" + addr, "tcp:127.0.0.1:1"}, {"relay", "add", "tcp:127.0.0.1:0", "unix:" + addr},
		} {
			_, stderr, code := s.try(line...)
			require.Equal(t, 2, code, "%q: %s", line, stderr)
		}
	}
	_, stderr, code := s.try("relay", "add", "tcp:127.0.0.1:0,\x1b[31m", "tcp:127.0.0.1:1")
	require.Equal(t, 2, code)
	require.Contains(t, stderr, `tcp:127.0.0.1:0,\x1b[31m`)
	_, stderr, code = s.try("connect", id, `/nonexistent/a\,b\x1b`)
	require.Equal(t, 8, code)
	require.Contains(t, stderr, `connect local "/nonexistent/a\,b\x1b": no such file or directory`)
}

// The longest names that the kernel takes were refused, and two binds of one path
// that nobody listens on yet both got it.
func TestLongNamesAndPathsThatAreBound(t *testing.T) {
	s := start(t, nil)
	dir, err := os.MkdirTemp("", "s")
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	for _, addr := range []string{dir + "/" + strings.Repeat("p", 107-len(dir)), "@" + filepath.Base(dir) + strings.Repeat("a", 107-len(filepath.Base(dir)))} {
		server, client, dgram := s.run("open", "local", "stream"), s.run("open", "local", "stream"), s.run("open", "local", "dgram")
		require.Equal(t, addr, s.run("bind", server, addr))
		types := []string{"stream", "dgram", "seqpacket"}
		if addr[0] == '@' {
			types = types[:1] // each type has abstract names of its own
		}
		for _, typ := range types {
			_, stderr, code := s.try("bind", s.run("open", "local", typ), addr)
			require.Equal(t, 7, code, stderr)
		}
		s.run("listen", server)
		s.run("connect", client, addr)
		require.Equal(t, addr, s.run("show", client, "-o", "peer", "--no-header"))
		_, stderr, code := s.try("send", "--to", addr, dgram, "x")
		require.Equal(t, 8, code, "nobody of this type: %s", stderr)
	}
}
