package main

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestBoxCPU(t *testing.T) {
	// user nice system idle iowait irq softirq steal guest guest_nice
	got, err := parseBoxCPU("cpu  100 20 300 9999 8888 5 50 7777 66 6\ncpu0 1 2 3\n")
	require.NoError(t, err)
	require.InDelta(t, 4.75, got, 1e-9, "work without idle, iowait, steal and what guests used")

	for name, stat := range map[string]string{
		"empty":        "",
		"another line": "intr 1 2 3 4 5 6 7 8",
		"no number":    "cpu  100 20 x 4 5 6 7 8",
		"too short":    "cpu 1 2 3",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseBoxCPU(stat)
			require.Error(t, err)
		})
	}
}

func TestProcStat(t *testing.T) {
	const rest = " S 17 42 42 0 -1 4194560 1 2 3 4 150 250 30 70 20 0 9 0 1"
	for name, comm := range map[string]string{
		"a plain name":                  "(nginx)",
		"a name with blanks":            "(nginx: worker process)",
		"a name that looks like an end": "(a) S 1 (b)",
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseProcStat("42 " + comm + rest)
			require.NoError(t, err)
			require.Equal(t, procStat{pid: 42, parent: 17, own: 4, children: 1}, got)
		})
	}
	for name, stat := range map[string]string{
		"empty":             "",
		"no name":           "42 S 17 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15",
		"cut":               "42 (x) S 17 42",
		"a pid that is not": "x (x)" + rest,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseProcStat(stat)
			require.Error(t, err)
		})
	}
}

func FuzzProcStat(f *testing.F) {
	f.Add("42 (nginx) S 17 42 42 0 -1 4194560 1 2 3 4 150 250 30 70 20 0 9 0 1")
	f.Add(")(")
	f.Add("1 (")
	f.Fuzz(func(t *testing.T, stat string) {
		got, err := parseProcStat(stat)
		if err != nil {
			require.Zero(t, got, "on error there is no result")
		}
	})
}

func TestFamilyIsTheProcessAndItsDescendants(t *testing.T) {
	all := []procStat{
		{pid: 9, parent: 5}, {pid: 5, parent: 3}, {pid: 3, parent: 1},
		{pid: 4, parent: 1}, {pid: 6, parent: 4}, {pid: 7, parent: 3},
	}
	var pids []int
	for _, p := range family(3, all) {
		pids = append(pids, p.pid)
	}
	require.ElementsMatch(t, []int{3, 5, 7, 9}, pids)
	require.Empty(t, family(99, all))
}

func TestFieldKiB(t *testing.T) {
	const status = "Name:\tsocat\nVmPeak:\t    9000 kB\nVmRSS:\t    4312 kB\nThreads:\t1\n"
	got, err := parseFieldKiB(status, "VmRSS")
	require.NoError(t, err)
	require.EqualValues(t, 4312, got)
	for _, name := range []string{"Pss", "Threads", "RSS"} {
		_, err := parseFieldKiB(status, name)
		require.Error(t, err, name)
	}
}

// This process has memory, descriptors, and has used the CPU.
func TestOwnHoldings(t *testing.T) {
	u, err := holdings(os.Getpid())
	require.NoError(t, err)
	require.Greater(t, u.rss, 1000.0)
	require.Greater(t, u.pss, 1000.0)
	require.Greater(t, u.descriptors, 2)

	before, err := cpuOf(os.Getpid())
	require.NoError(t, err)
	box, err := boxCPU()
	require.NoError(t, err)
	after := before
	for after < before+0.05 { // as long as it takes to be seen
		after, err = cpuOf(os.Getpid())
		require.NoError(t, err)
	}
	later, err := boxCPU()
	require.NoError(t, err)
	require.Greater(t, later, box)
}
