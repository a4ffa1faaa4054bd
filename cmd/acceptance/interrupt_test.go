package acceptance

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// interrupt sends SIGINT again and again until the process has ended, and tells how often
// and how it ended.
func interrupt(t *testing.T, c *exec.Cmd) (signals int, err error) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	every := time.NewTicker(2 * time.Millisecond)
	defer every.Stop()
	late := time.After(patience)
	for {
		if err := c.Process.Signal(os.Interrupt); !errors.Is(err, os.ErrProcessDone) {
			require.NoError(t, err)
			signals++
		}
		select {
		case err := <-ended:
			return signals, err
		case <-every.C:
		case <-late:
			require.NoError(t, c.Process.Kill())
			require.FailNow(t, "it does not end", "%v", <-ended)
		}
	}
}

// Ctrl-C pressed twice: the second one killed the command, and the summary was left out.
func TestASecondInterruptDoesNotCostTheSummary(t *testing.T) {
	for name, args := range map[string][]string{
		"lines":   nil,
		"a pipe":  {"-w", "-"},
		"a file":  {"-w", "cap.pcapng"},
		"several": {"-w", "cap.pcapng", "-C", "1M"},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := hosts(t)
			s := start(t, a)
			c := s.ctl(append([]string{"capture", "va", "udp", "port", "9"}, args...)...)
			c.Dir = s.dir
			stdout, stderr := &lockedBuffer{}, &lockedBuffer{}
			c.Stdout, c.Stderr = stdout, stderr
			require.NoError(t, c.Start())
			running(s)
			hurry(t, b, 20)
			received(s, 20)
			signals, err := interrupt(t, c)
			require.NoError(t, err, "%s", stderr)
			require.Greater(t, signals, 1)
			require.Contains(t, stderr.String(), "20 packets captured\n20 packets received by filter\n0 packets dropped by kernel\n")
			if name == "a file" {
				require.Len(t, payloads(t, filepath.Join(s.dir, "cap.pcapng")), 20)
			}
		})
	}
}

// Where the first interrupt ends nothing, because the daemon stands still, a later one
// does.
func TestALaterInterruptEndsWhatTheFirstCouldNot(t *testing.T) {
	a, _ := hosts(t)
	s := start(t, a)
	c := s.ctl("capture", "va", "-w", "-")
	require.NoError(t, c.Start())
	running(s)
	(&process{s.cmd}).halt(s)
	defer func() { require.NoError(t, s.cmd.Process.Signal(syscall.SIGCONT)) }()
	_, err := interrupt(t, c)
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, syscall.SIGINT, exit.Sys().(syscall.WaitStatus).Signal())
}
