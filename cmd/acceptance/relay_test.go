package acceptance

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// relayAddress is the address that `relay add` printed: "NAME NETWORK:ADDRESS".
func relayAddress(t *testing.T, printed string) string {
	t.Helper()
	fields := strings.Fields(printed)
	require.Len(t, fields, 2, "relay add prints NAME NETWORK:ADDRESS")
	_, addr, ok := strings.Cut(fields[1], ":")
	require.True(t, ok)
	return addr
}

// nginx runs a real nginx on a unix socket: files below root, and PUT to /up/.
func nginx(t *testing.T, root string) (socket string) {
	t.Helper()
	dir := t.TempDir()
	socket = filepath.Join(dir, "http")
	require.NoError(t, os.MkdirAll(filepath.Join(root, "up"), 0o777))
	conf := `
daemon off; master_process off; pid ` + dir + `/pid; error_log ` + dir + `/error.log;
events { worker_connections 256; }
http {
  access_log off; client_max_body_size 1g; client_body_temp_path ` + dir + `/body; proxy_temp_path ` + dir + `/proxy;
  fastcgi_temp_path ` + dir + `/f; uwsgi_temp_path ` + dir + `/u; scgi_temp_path ` + dir + `/s;
  server {
    listen unix:` + socket + `; root ` + root + `;
    location /up/ { dav_methods PUT; create_full_put_path on; }
  }
}`
	file := filepath.Join(dir, "nginx.conf")
	require.NoError(t, os.WriteFile(file, []byte(conf), 0o644))
	cmd := exec.Command("nginx", "-c", file, "-p", dir)
	out := background(t, cmd)
	eventually(t, func() string { return "nginx listens: " + out.String() }, func() bool {
		c, err := net.Dial("unix", socket)
		return err == nil && c.Close() == nil
	})
	return socket
}

func TestHTTPThroughATCPPortToNginxOnAUnixSocket(t *testing.T) {
	s := start(t, nil)
	root := t.TempDir()
	require.NoError(t, os.Chmod(root, 0o755))
	blob := make([]byte, 100<<20)
	_, err := rand.Read(blob)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(root, "blob"), blob, 0o644))
	url := "http://" + relayAddress(t, s.run("relay", "add", "web", "tcp:127.0.0.1:0", "unix:"+nginx(t, root)))

	down := filepath.Join(t.TempDir(), "down")
	must(t, exec.Command("curl", "-sS", "--fail", "-o", down, url+"/blob"))
	require.Equal(t, sha256.Sum256(blob), sum(t, down), "100 MiB from nginx arrive as they are")

	must(t, exec.Command("curl", "-sS", "--fail", "-T", filepath.Join(root, "blob"), url+"/up/blob"))
	require.Equal(t, sha256.Sum256(blob), sum(t, filepath.Join(root, "up", "blob")), "100 MiB to nginx arrive as they are")

	show := s.run("relay", "show", "web", "--json")
	require.Contains(t, show, `"total":2`)
}

func sum(t *testing.T, file string) [sha256.Size]byte {
	t.Helper()
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	return sha256.Sum256(b)
}

func TestDatagramsKeepTheirBordersFromUDPToAUnixSocket(t *testing.T) {
	s := start(t, nil)
	path := filepath.Join(t.TempDir(), "echo")
	echo, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	require.NoError(t, err)
	echoed := make(chan struct{})
	go echoDatagrams(echo, echoed)
	defer func() { _ = echo.Close(); <-echoed }()

	client, err := net.Dial("udp", relayAddress(t, s.run("relay", "add", "udp:127.0.0.1:0", "unixgram:"+path)))
	require.NoError(t, err)
	defer client.Close()
	for _, size := range []int{0, 1, 1472, 9000, 65507} {
		want := make([]byte, size)
		_, err := rand.Read(want)
		require.NoError(t, err)
		_, err = client.Write(want)
		require.NoError(t, err)
		got := make([]byte, 1<<17)
		require.NoError(t, client.SetReadDeadline(time.Now().Add(patience)))
		n, err := client.Read(got)
		require.NoError(t, err, "a datagram of %d bytes", size)
		require.Equal(t, size, n)
		require.True(t, bytes.Equal(want, got[:n]), "a datagram of %d bytes arrives as it is", size)
	}
}

func echoDatagrams(c *net.UnixConn, done chan<- struct{}) {
	defer close(done)
	buf := make([]byte, 1<<17)
	for {
		n, from, err := c.ReadFromUnix(buf)
		if err != nil {
			return
		}
		if _, err := c.WriteToUnix(buf[:n], from); err != nil {
			return
		}
	}
}

func TestAClientThatHasFinishedSendingStillGetsItsAnswer(t *testing.T) {
	s := start(t, nil)
	backend, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer backend.Close()
	answered := make(chan error, 1)
	go func() { answered <- answerLate(backend, 3*time.Second) }()

	c, err := net.Dial("tcp", relayAddress(t, s.run("relay", "add", "tcp:127.0.0.1:0", "tcp:"+backend.Addr().String())))
	require.NoError(t, err)
	defer c.Close()
	_, err = c.Write([]byte("question"))
	require.NoError(t, err)
	require.NoError(t, c.(*net.TCPConn).CloseWrite())
	got, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, "question answered", string(got))
	require.NoError(t, <-answered)
}

// answerLate reads to the end, thinks, and answers: the peer that socat and
// systemd-socket-proxyd cut off.
func answerLate(l net.Listener, think time.Duration) error {
	c, err := l.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	question, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	time.Sleep(think) // the point of the test, not a wait for something
	_, err = c.Write(append(question, " answered"...))
	return err
}

// The listener of a unix path stays when its relay is replaced: the path is never
// bound anew, and who is connected goes on.
func TestReplaceKeepsTheListenerOfAUnixPath(t *testing.T) {
	s := start(t, nil)
	var backends []net.Listener
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer l.Close()
		backends = append(backends, l)
	}
	path := filepath.Join(t.TempDir(), "from")
	s.run("relay", "add", "swap", "unix:"+path, "tcp:"+backends[0].Addr().String())
	before, err := os.Stat(path)
	require.NoError(t, err)
	old := dialTo(t, path, backends[0])

	s.run("relay", "replace", "swap", "unix:"+path, "tcp:"+backends[1].Addr().String())
	after, err := os.Stat(path)
	require.NoError(t, err)
	require.True(t, os.SameFile(before, after), "the path is the same socket")
	fresh := dialTo(t, path, backends[1])
	for _, p := range []pair{old, fresh} {
		_, err := p.client.Write([]byte("x"))
		require.NoError(t, err)
		got := make([]byte, 1)
		_, err = io.ReadFull(p.server, got)
		require.NoError(t, err)
	}
}

type pair struct{ client, server net.Conn }

// dialTo connects through path, and must arrive at l.
func dialTo(t *testing.T, path string, l net.Listener) pair {
	t.Helper()
	c, err := net.Dial("unix", path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	require.NoError(t, l.(*net.TCPListener).SetDeadline(time.Now().Add(patience)))
	p, err := l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { _ = p.Close() })
	return pair{c, p}
}
