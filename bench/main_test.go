package main

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The tests' own program is source and sink as the real one is.
func TestMain(m *testing.M) {
	if done, err := runRole(os.Args[1:]); done {
		exit("bench "+os.Args[1], err)
	}
	os.Exit(m.Run())
}

func TestFlags(t *testing.T) {
	o, err := parseFlags([]string{"-quick", "-row", "^rr", "-peer", "nginx", "-rounds", "3"})
	require.NoError(t, err)
	require.True(t, o.quick)
	require.True(t, o.row.MatchString("rr-1") && !o.row.MatchString("crr"))
	require.True(t, o.peer.MatchString("nginx 256k"))
	require.Equal(t, plan{rounds: 1}, rounds(o), "quick has one round and no warm-up")

	for name, args := range map[string][]string{
		"no round":            {"-rounds", "0"},
		"too many rounds":     {"-rounds", "101"},
		"a row that is no RE": {"-row", "("},
		"an argument":         {"all"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseFlags(args)
			require.Error(t, err)
		})
	}
}

func mustRig(tb testing.TB) *rig {
	tb.Helper()
	b, err := newRig()
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, b.close()) })
	return b
}

// direct is the peer that is always there.
func direct() candidate {
	return candidate{peer: peer{name: "direct", lay: layDirect}}
}

// Every row with a path of its own runs from the source to the sink, and gives what
// its columns want.
func TestRowsRunDirect(t *testing.T) {
	b := mustRig(t)
	for _, r := range allRows() {
		if r.job.Kind == idle {
			continue // there is no relay to weigh; see TestIdleWeighsTheRelay
		}
		t.Run(r.name, func(t *testing.T) {
			r.job = shorten(r.job)
			r.job.Bytes, r.job.Count, r.job.For = 8<<20, 100, 50*time.Millisecond
			res := b.measure(t.Context(), r, []candidate{direct()}, plan{rounds: 2, warm: 1})
			require.Empty(t, res[0].whyNot)
			require.Len(t, res[0].samples, 1, "the warm-up does not count")
			require.Positive(t, res[0].samples[0][r.cols[0].key])
			require.NotContains(t, res[0].samples[0], relayOp.key, "nobody relayed")
			if r.job.Kind == datagrams {
				require.Zero(t, res[0].samples[0][lost.key], "nothing is lost within the window")
			}
		})
	}
	left, err := os.ReadDir(b.dir)
	require.NoError(t, err)
	require.Empty(t, left, "each sample removes its folder")
}

// shellPeer is a program to look after that relays nothing: the source goes past it,
// to the sink. It must print "up" as JSON once it runs.
func shellPeer(script string) candidate {
	return candidate{peer: peer{name: "shell", descriptors: 1, lay: func(ctx context.Context, _, _ string, to endpoint) (endpoint, *child, error) {
		c, err := startChild("/bin/sh", "-c", script)
		if err != nil {
			return endpoint{}, nil, err
		}
		var up string
		if err := c.hear(ctx, &up); err != nil {
			return endpoint{}, nil, fmt.Errorf("%w, %w", err, c.end())
		}
		return to, c, nil
	}}}
}

// The sessions go past the "relay" here, so it must weigh nothing.
func TestIdleWeighsTheRelay(t *testing.T) {
	b := mustRig(t)
	r := chooseRows(true, regexp.MustCompile(`^idle$`))[0]
	r.job.Conns = 20
	res := b.measure(t.Context(), r, []candidate{shellPeer(`echo '"up"'; exec sleep 60`)}, plan{rounds: 1})
	require.Empty(t, res[0].whyNot)
	s := res[0].samples[0]
	require.EqualValues(t, 20, s[sessions.key])
	require.Zero(t, s[perSession.key])
	require.Positive(t, s[emptyMiB.key])
}

func TestAPeerThatFailsSaysWhy(t *testing.T) {
	b := mustRig(t)
	r := chooseRows(true, regexp.MustCompile(`^rr-1$`))[0]
	peers := []candidate{
		direct(),
		shellPeer(`echo 'no route to the moon' >&2; exit 3`),
		{peer: peer{name: "absent"}, missing: fmt.Errorf("absent is not installed")},
	}
	res := b.measure(t.Context(), r, peers, plan{rounds: 2})
	require.Empty(t, res[0].whyNot, "others go on")
	require.Len(t, res[0].samples, 2)
	require.Contains(t, res[1].whyNot, "no route to the moon")
	require.Equal(t, "absent is not installed", res[2].whyNot)
}

func TestCancelEndsASample(t *testing.T) {
	b := mustRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	r := chooseRows(false, regexp.MustCompile(`^rr-1$`))[0]
	r.job.For = time.Hour
	started := make(chan struct{})
	p := direct()
	p.lay = func(_ context.Context, _, _ string, to endpoint) (endpoint, *child, error) {
		close(started)
		return to, nil, nil
	}
	go func() { <-started; cancel() }()
	_, err := b.sample(ctx, r, p.peer)
	require.ErrorIs(t, err, context.Canceled)
	left, err := os.ReadDir(b.dir)
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestRowsAreNamedOnce(t *testing.T) {
	names := strings.Fields(rowNames())
	seen := map[string]bool{}
	for _, n := range names {
		require.False(t, seen[n], n)
		seen[n] = true
	}
	require.Len(t, names, len(allRows()))
}

func TestFit(t *testing.T) {
	row := func(name string) row {
		return chooseRows(false, regexp.MustCompile("^"+name+"$"))[0]
	}
	forking := peer{name: "forking", perProcess: true}
	streams := peer{name: "streams", noUDP: "streams only", descriptors: 6}
	for _, c := range []struct {
		name   string
		row    string
		peer   peer
		limit  int
		conns  int
		to     string
		whyNot string
	}{
		{"direct stays on the client's network", "bulk-tcp-unix", peer{name: "direct"}, 20_000, 0, "tcp", ""},
		{"a relay goes where the row says", "bulk-tcp-unix", streams, 20_000, 0, "unix", ""},
		{"direct has nothing to hold", "idle", peer{name: "direct"}, 20_000, 0, "", "no relay, nothing to hold"},
		{"no UDP, no UDP row", "udp-64-1", streams, 20_000, 0, "", "streams only"},
		{"one UDP client is one process", "udp-64-1", forking, 20_000, 0, "udp", ""},
		{"a thousand processes are too many", "udp-64-1000", forking, 20_000, 0, "", "starts a process a client, which never ends"},
		{"fewer sessions where each is a process", "idle", forking, 20_000, forkedSessions, "tcp", ""},
		{"all sessions within a wide limit", "idle", streams, 1 << 20, idleSessions, "tcp", ""},
		{"no more sessions than descriptors", "idle", streams, 20_000, 3300, "tcp", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, whyNot := row(c.row).fit(c.peer, c.limit)
			require.Equal(t, c.whyNot, whyNot)
			if whyNot == "" {
				require.Equal(t, c.conns, got.job.Conns)
				require.Equal(t, c.to, got.to)
			}
		})
	}
}
