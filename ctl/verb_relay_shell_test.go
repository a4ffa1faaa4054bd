package ctl

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestReplaceWithTheSameUnixFromBindsNothing(t *testing.T) {
	t.Chdir(t.TempDir())
	sh, _ := mustShell(t)
	sh.must("relay add", "web", "unix:./front.sock,mode=600", "tcp:127.0.0.1:1")
	before, err := os.Lstat("front.sock")
	require.NoError(t, err)

	sh.must("relay replace", "web", "unix:front.sock,mode=600", "tcp:127.0.0.1:2")
	after, err := os.Lstat("front.sock")
	require.NoError(t, err)
	require.True(t, os.SameFile(before, after), "the listener stays")
	require.Contains(t, sh.must("relay show", "--command", "web"), "tcp:127.0.0.1:2")

	sh.must("relay replace", "web", "unix:./other.sock", "tcp:127.0.0.1:2")
	require.FileExists(t, "other.sock", "another FROM is bound")
}

func TestARelayThatIsRefusedLeavesNoFile(t *testing.T) {
	t.Chdir(t.TempDir())
	sh, _ := mustShell(t)
	sh.must("relay add", "web", "tcp:127.0.0.1:0", "tcp:127.0.0.1:1")
	r := sh.run("", "relay add", "web", "unix:./front.sock", "tcp:127.0.0.1:1")
	require.Equal(t, ExitInUse, r.exit, r.stderr)
	require.NoFileExists(t, "front.sock")
}

func TestALivePathIsNobodyElses(t *testing.T) {
	t.Chdir(t.TempDir())
	l, err := net.Listen("unix", "live.sock")
	require.NoError(t, err)
	defer l.Close()
	sh, _ := mustShell(t)
	r := sh.run("", "relay add", "unix:live.sock", "tcp:127.0.0.1:1")
	require.Equal(t, ExitInUse, r.exit, r.stderr)
	require.FileExists(t, "live.sock")
	require.Equal(t, "[]\n", sh.run("", "--json", "relay ls").stdout, "the daemon was not asked")
}

func TestARelayIsWhatItsCommandSays(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	sh, _ := mustShell(t)
	sh.must("relay add", "--max-conns", "3", "--idle", "none", "--permanent", "web", "unix:a b.sock", "unix:"+filepath.Join(dir, "to.sock"), "tcp:127.0.0.1:1,backup")
	require.Equal(t,
		"sockd-ctl relay add web 'unix:"+dir+"/a b.sock' unix:"+dir+"/to.sock tcp:127.0.0.1:1,backup --max-conns 3 --idle none --permanent",
		sh.must("relay show", "--command", "web"))

	sh.must("relay set", "--max-conns", "default", "--idle", "5m", "--to", "unix:./new.sock", "web")
	require.Equal(t,
		"sockd-ctl relay add web 'unix:"+dir+"/a b.sock' unix:"+dir+"/new.sock --idle 5m --permanent",
		sh.must("relay show", "--command", "web"))

	r := sh.run("", "relay rm", "nobody", "web", "nothing")
	require.Equal(t, ExitNotFound, r.exit)
	require.Contains(t, r.stderr, "nobody", "the first failure is printed by the caller")
	require.Contains(t, r.stderr, "nothing", "the others were tried")
	require.Equal(t, "[]\n", sh.run("", "--json", "relay ls").stdout)
}

func TestKindsAreListedTogether(t *testing.T) {
	sh, _ := mustShell(t)
	sh.must("open", "inet", "stream")
	sh.must("relay add", "web", "tcp:127.0.0.1:0", "tcp:127.0.0.1:1")
	require.Regexp(t, `^\[\{"kind":"socket","id":1,.*\},\{"kind":"relay","id":2,"name":"web",.*\}\]\n$`, sh.run("", "--json", "ls", "all").stdout)
	require.Equal(t, "[]\n", sh.run("", "--json", "ls", "sessions").stdout)
	require.Equal(t, ExitUsage, sh.run("", "ls", "injections").exit)
	refs, err := sh.env.Refs(t.Context(), "relay")
	require.NoError(t, err)
	require.Equal(t, "web", refs[0].Name)
}
