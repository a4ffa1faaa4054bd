package acceptance

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/families/familytest"
)

// The classic procedure word for word: socket, bind, listen, accept, close for a
// server; socket, connect, send, recv, close for a client.
func TestTheClassicProcedure(t *testing.T) {
	ns := familytest.NewNS(t)
	s := start(t, ns)
	path := filepath.Join(s.dir, "server")
	for _, c := range []struct {
		family, typ, addr string
	}{
		{"inet", "stream", "127.0.0.1:7000"},
		{"inet6", "stream", "[::1]:7000"},
		{"local", "stream", path},
		{"local", "seqpacket", path + ".seq"},
		{"local", "stream", "@sockd-acceptance"},
	} {
		t.Run(c.family+" "+c.typ+" "+filepath.Base(c.addr), func(t *testing.T) {
			server := s.run("open", c.family, c.typ)
			require.Equal(t, c.addr, s.run("bind", server, c.addr))
			s.run("listen", server)
			client := s.run("open", c.family, c.typ)
			s.run("connect", client, c.addr)
			accepted := strings.Fields(s.run("accept", server))
			require.Len(t, accepted, 2, "accept prints ID PEER")
			s.run("send", client, "hello")
			require.Equal(t, "hello", s.run("recv", accepted[0]))
			s.run("send", accepted[0], "world")
			require.Equal(t, "world", s.run("recv", client))
			s.run("close", client)
			_, stderr, code := s.try("recv", accepted[0])
			require.Equal(t, 9, code, "the end of a stream is exit 9: %s", stderr)
			second := s.run("open", c.family, c.typ)
			s.run("connect", second, c.addr)
			s.run("accept", server)
			s.run("close", second)
			s.run("close", "--accepted", server)
			require.Equal(t, "[]", strings.TrimSpace(s.run("ls", "--json")))
		})
	}
}

func TestTheClassicProcedureBetweenTwoEndsOfAVeth(t *testing.T) {
	ns := familytest.NewNS(t)
	familytest.Veth(t, ns, "va", "", ns, "vb", "")
	s := start(t, ns)
	a, b := s.run("open", "packet", "raw"), s.run("open", "packet", "raw")
	s.run("bind", a, "va/0x88b5")
	s.run("bind", b, "vb/0x88b5")
	const frame = "ffffffffffff0200000000aa88b5" + "736f636b64"
	s.run("send", a, "--hex", frame)
	got := s.run("recv", b, "--hex")
	require.True(t, strings.HasPrefix(got, frame), "got %s; want %s and padding", got, frame)
	s.run("close", a, b)
}

// Ten lines of another language: Varlink needs no library.
func TestARawVarlinkClientInAnotherLanguage(t *testing.T) {
	s := start(t, nil)
	const client = `
import json, socket, sys
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
def call(method, **parameters):
    s.sendall(json.dumps({"method": method, "parameters": parameters}).encode() + b"\0")
    answer = b""
    while not answer.endswith(b"\0"): answer += s.recv(1)
    return json.loads(answer[:-1])
print(json.dumps(call("org.varlink.service.GetInfo")))
print(json.dumps(call("io.sockd.Manager.Open", family="inet", type="stream")))
`
	lines := strings.Split(strings.TrimSpace(must(t, exec.Command("python3", "-c", client, s.socket))), "\n")
	require.Len(t, lines, 2)
	var info struct {
		Parameters struct {
			Product    string
			Interfaces []string
		}
	}
	require.NoError(t, json.Unmarshal([]byte(lines[0]), &info))
	require.Equal(t, "sockd", info.Parameters.Product)
	require.Contains(t, info.Parameters.Interfaces, "io.sockd.Manager")
	var opened struct{ Parameters struct{ ID int } }
	require.NoError(t, json.Unmarshal([]byte(lines[1]), &opened))
	require.Equal(t, 1, opened.Parameters.ID)
	require.Contains(t, s.run("ls"), "inet")
}

func TestAHalfClosedCallerGetsItsAnswer(t *testing.T) {
	s := start(t, nil)
	out := must(t, exec.Command("sh", "-c", `printf '{"method":"org.varlink.service.GetInfo"}\0' | socat - UNIX-CONNECT:`+s.socket))
	require.Contains(t, out, `"product":"sockd"`)
}
