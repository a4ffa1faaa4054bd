package main

import (
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// mustStart runs a shell script that prints pids as lines, and returns them.
func mustStart(t *testing.T, script string) (*child, []int) {
	t.Helper()
	require.NoError(t, adoptOrphans())
	c, err := startChild("/bin/sh", "-c", script)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.end()) })
	var pids []int
	require.NoError(t, c.hear(t.Context(), &pids))
	return c, pids
}

func requireGone(t *testing.T, pids []int) {
	t.Helper()
	for _, pid := range pids {
		require.ErrorIs(t, syscall.Kill(pid, 0), syscall.ESRCH, "process "+strconv.Itoa(pid))
	}
}

func TestEndTakesAllProcesses(t *testing.T) {
	for name, script := range map[string]string{
		"a program alone":                 `echo "[$$]"; exec sleep 60`,
		"with its children":               `sleep 60 & a=$!; sleep 60 & echo "[$$,$a,$!]"; wait`,
		"one that does not hear SIGTERM":  `trap '' TERM; echo "[$$]"; while :; do sleep 1; done`,
		"a child left by its parent":      `sleep 60 & echo "[$!]"; exit 0`,
		"a grandchild that is an orphan":  `(sleep 60 & echo "[$$,$!]"); exec sleep 60`,
		"one that has ended on its own":   `echo "[$$]"`,
		"one that says more than is kept": `i=0; while [ $i -lt 2000 ]; do echo words words words >&2; i=$((i+1)); done; echo "[$$]"; exec sleep 60`,
	} {
		t.Run(name, func(t *testing.T) {
			c, pids := mustStart(t, script)
			require.NoError(t, c.end())
			requireGone(t, append(pids, c.pid()))
			require.NoError(t, c.end(), "twice is nil")
			require.LessOrEqual(t, len(c.words.buf), wordsKept)
		})
	}
}

func TestHearTellsWhyAProgramEnded(t *testing.T) {
	require.NoError(t, adoptOrphans())
	for name, c := range map[string]struct{ script, want string }{
		"its last words":  {`echo first >&2; echo 'bind: in use' >&2; exit 1`, "bind: in use"},
		"its exit status": {`exit 7`, "exit status 7"},
		"a quiet success": {`:`, "exit status 0"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := startChild("/bin/sh", "-c", c.script)
			require.NoError(t, err)
			var v any
			require.EqualError(t, p.hear(t.Context(), &v), c.want)
			require.NoError(t, p.end())
		})
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	var l tail
	for range 3 {
		_, err := l.Write([]byte(strings.Repeat("x", wordsKept) + "\n"))
		require.NoError(t, err)
	}
	_, err := l.Write([]byte("the end\n\n"))
	require.NoError(t, err)
	require.Equal(t, "the end", l.lastLine())
	require.Len(t, l.buf, wordsKept)
}
