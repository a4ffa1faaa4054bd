package prove

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The sizes. Without flags they are those of `make test`.
var (
	kills    = flag.Int("kills", 12, "how often sockd is killed while bytes flow")
	mebi     = flag.Int64("mib", 256, "how many MiB flow at least, both ways of all relays together")
	sessions = flag.Int("sessions", 200, "how many sessions are open while all is killed")
	rounds   = flag.Int("rounds", 3, "how often all is killed")
	upgrades = flag.Int("upgrades", 3, "how many times sockd is replaced by another build")
	rate     = flag.Int("rate", 100, "how many sessions a second begin meanwhile")
	wmem     = flag.Int("wmem", 0, "set net.core.wmem_max, which is the whole machine's, to this meanwhile; 0 leaves it")
)

// killEvery is about the time from one kill to the next, which paces the bytes.
const killEvery = 180 * time.Millisecond

func TestKillsLoseNoByte(t *testing.T) {
	m := boot(t)
	ways := m.serveWays()
	each := *mebi << 20 / int64(2*len(ways))
	l := m.startLoad("streams", order{Ways: ways, Bytes: each, Over: time.Duration(*kills) * killEvery})
	m.Until("bytes flow", func() bool { return l.moved() > 1<<20 })

	var moments []time.Time
	last, begun := 0, time.Now()
	kill := func() {
		pid, at := m.killNext(last, time.Duration(rand.Int64N(int64(killEvery))))
		last, moments = pid, append(moments, at)
	}
	for len(moments) < *kills || l.moved() < *mebi<<20 {
		kill()
	}
	l.tell("stop")
	for !l.answered() { // the ends of the streams are killed, too
		kill()
	}
	var dirs []*direction
	l.await(&dirs)
	judge(t, dirs, moments, time.Since(begun))
	m.Until("systemd has counted every kill", func() bool {
		return m.Property("sockd.service", "NRestarts") == strconv.Itoa(len(moments))
	})
}

// judge fails the test where anything was lost, and enters the stalls.
func judge(t *testing.T, dirs []*direction, moments []time.Time, took time.Duration) {
	t.Helper()
	var at []int64
	for _, m := range moments {
		at = append(at, m.UnixNano())
	}
	var stalls []time.Duration
	var moved int64
	var longest time.Duration
	for _, d := range dirs {
		require.Empty(t, d.lost())
		moved += d.Got
		after, whole := d.stalls(at)
		stalls, longest = append(stalls, after...), max(longest, whole)
	}
	report.add("SIGKILL while bytes flow", "%d kills, %s over %d relays in %.0f s: sha256 equal, no reset; stall after a kill p50 %s, p99 %s, most %s; over several kills %s",
		len(moments), size(moved), len(dirs)/2, took.Seconds(), ms(percentile(stalls, .5)), ms(percentile(stalls, .99)), ms(percentile(stalls, 1)), ms(longest))
}

func (l *loading) moved() (n int64) {
	l.tb.Helper()
	l.tell("moved")
	l.await(&n)
	return n
}

func TestAKillOfEverythingEndsNoSession(t *testing.T) {
	m := boot(t)
	ways := m.serveWays()
	l := m.startLoad("open", order{Ways: ways, Sessions: *sessions})
	round := func() (r roundResult) {
		l.tell("round")
		l.await(&r)
		require.Empty(t, r.Lost)
		require.Equal(t, *sessions, r.Sessions)
		return r
	}
	round()
	var slowest []time.Duration
	for range *rounds {
		m.Run("systemctl", "kill", "-s", "KILL", "sockd.service")
		slowest = append(slowest, round().Slowest)
	}
	s := m.status()
	require.Equal(t, [2]int{len(ways), *sessions}, [2]int{s.Relays, s.Sessions})
	for _, how := range [][]string{{"restart", "sockd.service"}, {"daemon-reexec"}, {"kill", "-s", "KILL", "sockd.service"}} {
		m.Run("systemctl", how...)
		round()
	}
	m.Run("systemctl", "kill", "-s", "KILL", "sockd.service")
	var end roundResult
	l.tell("end")
	l.await(&end)
	require.Empty(t, end.Lost)
	m.Until("sockd sees them ended", func() bool { return m.status().Sessions == 0 })
	report.add("systemctl kill -s KILL", "%d open sessions, %d rounds, then restart and daemon-reexec: all went on, ends as ends, resets as resets; longest wait %s",
		*sessions, *rounds, ms(percentile(slowest, 1)))
}

func TestUpgradesRefuseNobody(t *testing.T) {
	m := boot(t)
	l := m.startChurn()
	version := "one"
	for range *upgrades {
		version = map[string]string{"one": "two", "two": "one"}[version]
		m.Run("cp", "--remove-destination", "/usr/local/share/sockd."+version, "/usr/local/bin/sockd")
		m.Run("systemctl", "restart", "sockd.service")
		require.Equal(t, version, m.status().Version)
		time.Sleep(time.Duration(rand.Int64N(int64(betweenUpgrades))))
	}
	r := l.endChurn()
	report.add("upgrade", "%d between two builds under %d new sessions a second, %s", *upgrades, *rate, r)
}

// betweenUpgrades is the longest time for which sessions come before the next one.
const betweenUpgrades = 600 * time.Millisecond

// TestKillsAmongNewSessions is where the law has its edge: a connection that was
// accepted and is not parked yet may be reset, when no byte of it was passed on.
func TestKillsAmongNewSessions(t *testing.T) {
	m := boot(t)
	l := m.startChurn()
	last := 0
	for range *kills {
		last, _ = m.killNext(last, time.Duration(rand.Int64N(int64(2*killEvery))))
	}
	r := l.endChurn()
	report.add("SIGKILL under new sessions", "%d kills under %d new sessions a second, %s", *kills, *rate, r)
}

func (m machine) startChurn() *loading {
	m.tb.Helper()
	l := m.startLoad("churn", order{Ways: m.serveWays(), Rate: *rate})
	m.Until("sessions come", func() bool { return l.begun() > 0 })
	return l
}

func (l *loading) begun() (n int64) {
	l.tb.Helper()
	l.tell("begun")
	l.await(&n)
	return n
}

// endChurn fails the test where anything was refused or lost.
func (l *loading) endChurn() (r churnResult) {
	l.tb.Helper()
	l.tell("stop")
	l.await(&r)
	require.NotZero(l.tb, r.Done)
	require.Zero(l.tb, r.Refused, "%v", r.Errors)
	require.Zero(l.tb, r.Lost, "%v", r.Errors)
	return r
}

func (r churnResult) String() string {
	return fmt.Sprintf("%d in all: %d refused, %d lost, %d reset before the first park; slowest %s", r.Begun, r.Refused, r.Lost, r.Edge, ms(r.Slowest))
}

// TestADurableSocketOutlivesAKill goes by the verbs that a script would use.
func TestADurableSocketOutlivesAKill(t *testing.T) {
	m := boot(t)
	m.serveWays()
	id := m.Run("sockd-ctl", "open", "inet", "stream", "--durable")
	m.Run("sockd-ctl", "bind", id, "127.0.0.1:20001")
	m.Run("sockd-ctl", "listen", id)
	plain := m.Run("sockd-ctl", "open", "inet", "dgram")
	pid := m.status().PID
	m.Run("systemctl", "kill", "-s", "KILL", "sockd.service")
	m.Until("the next sockd serves", func() bool {
		now := m.MainPID("sockd.service")
		return now != 0 && now != pid && m.Property("sockd.service", "ActiveState") == "active"
	})

	require.Contains(t, m.Run("sockd-ctl", "show", id), "127.0.0.1:20001")
	_, err := m.Try("sockd-ctl", "show", plain)
	require.Error(t, err, "it was not durable")
	m.Run("bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/20001")
	accepted, _, _ := strings.Cut(m.Run("sockd-ctl", "accept", id), " ")
	require.NotEqual(t, plain, accepted, "no ID is given twice")
	m.Run("sockd-ctl", "close", id)
	m.Run("sockd-ctl", "close", accepted)
	require.Empty(t, m.Run("ss", "-Hltn", "sport = :20001"), "nothing holds its address any more")
}
