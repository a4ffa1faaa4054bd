package systemdtest_test

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/systemd/systemdtest"
)

// TestAMachineBootsAndLeavesNothingBehind boots a machine with one unit from
// its tree, and then looks for its mounts and cgroups on the host.
func TestAMachineBootsAndLeavesNothingBehind(t *testing.T) {
	cgroups := mustRead(t, "/proc/self/cgroup")
	passwd := mustRead(t, "/etc/passwd")
	var pid int
	var cgroup, folder string

	t.Run("machine", func(t *testing.T) {
		tree := t.TempDir()
		units := tree + "/usr/local/lib/systemd/system"
		require.NoError(t, os.MkdirAll(units, 0o755))
		require.NoError(t, os.WriteFile(units+"/hello.service",
			[]byte("[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/echo hello from inside\n"), 0o644))

		m := systemdtest.Boot(t, tree)
		pid, cgroup, folder = m.Pid(), m.Cgroup(), filepath.Dir(tree)
		require.DirExists(t, cgroup)
		m.Run("systemctl", "start", "hello.service")
		require.Equal(t, "active", m.Property("hello.service", "ActiveState"))
		require.Contains(t, m.Journal("cat", "_SYSTEMD_UNIT=hello.service"), "hello from inside")
		require.Equal(t, "systemd", m.Run("cat", "/proc/1/comm"))
		require.Contains(t, m.Run("ip", "-br", "link"), "lo ")
		require.NotContains(t, m.Run("ip", "-br", "link"), "eth", "the host's interfaces are not the machine's")

		m.WriteFile("/etc/passwd", "root:x:0:0::/root:/bin/sh\nonly-in-the-machine:x:4711:4711::/:/bin/sh\n")
		require.Equal(t, "4711", m.Run("id", "-u", "only-in-the-machine"))
		require.Equal(t, passwd, mustRead(t, "/etc/passwd"), "the host's users stay as they were")
	})

	require.NoDirExists(t, "/proc/"+strconv.Itoa(pid))
	require.NotContains(t, mustRead(t, "/proc/self/mountinfo"), folder)
	require.Equal(t, cgroups, mustRead(t, "/proc/self/cgroup"))
	require.NoDirExists(t, cgroup)
}

func mustRead(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(b)
}
