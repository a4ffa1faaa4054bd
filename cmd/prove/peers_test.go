package prove

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The peers do what sockd does in one of its relays, from TCP to TCP, as services that
// are started again at once. What becomes of their sessions is in the table; none of it
// fails the test.

// A peer is a service beside sockd.
type peer struct {
	name    string
	service string
	units   func(from, to string) map[string]string // files of the machine, by path
	start   string
}

const (
	unitFolder = "/etc/systemd/system/"
	// again starts a service as soon as it has died.
	again = "Restart=always\nRestartSec=10ms\n[Unit]\nStartLimitIntervalSec=0\n"
)

var peers = []peer{
	{name: "socat", service: "socat.service", start: "socat.service", units: func(from, to string) map[string]string {
		return map[string]string{unitFolder + "socat.service": "[Service]\nExecStart=/usr/bin/socat " +
			"TCP-LISTEN:" + from + ",fork,reuseaddr,backlog=4096,bind=127.0.0.1 TCP:127.0.0.1:" + to + "\n" + again}
	}},
	{name: "haproxy", service: "haproxy.service", start: "haproxy.service", units: func(from, to string) map[string]string {
		return map[string]string{
			unitFolder + "haproxy.service": "[Service]\nType=notify\nExecStart=/usr/sbin/haproxy -Ws -f /etc/haproxy.prove\n" + again,
			"/etc/haproxy.prove": "defaults\n mode tcp\n timeout connect 5s\n timeout client 1m\n timeout server 1m\n" +
				"listen prove\n bind 127.0.0.1:" + from + " backlog 4096\n server one 127.0.0.1:" + to + "\n",
		}
	}},
	{name: "systemd-socket-proxyd", service: "proxyd.service", start: "proxyd.socket", units: func(from, to string) map[string]string {
		return map[string]string{
			unitFolder + "proxyd.socket":  "[Socket]\nListenStream=127.0.0.1:" + from + "\nBacklog=4096\n",
			unitFolder + "proxyd.service": "[Service]\nExecStart=/lib/systemd/systemd-socket-proxyd 127.0.0.1:" + to + "\n" + again,
		}
	}},
}

const (
	peerFrom = 23001
	peerTo   = 23101
	// peerSessions is how many sessions are open when a peer is killed.
	peerSessions = 50
	// peerRate is how many begin in a second while it is killed and restarted.
	peerRate = 100
)

func TestPeersBesideIt(t *testing.T) {
	m := boot(t)
	killed, restarted, r := m.compare("sockd", "sockd.service", m.serveWays()[:1])
	require.Equal(t, [4]int64{peerSessions, peerSessions, 0, 0}, [4]int64{int64(killed), int64(restarted), r.Refused, r.Lost})
	for i, p := range peers {
		from, to := fmt.Sprint(peerFrom+i), fmt.Sprint(peerTo+i)
		for path, text := range p.units(from, to) {
			m.WriteFile(path, text)
		}
		m.Run("systemctl", "daemon-reload")
		m.Run("systemctl", "start", p.start)
		m.compare(p.name, p.service, []way{{Name: p.name, From: "tcp:127.0.0.1:" + from, To: "tcp:127.0.0.1:" + to}})
		m.Run("systemctl", "stop", p.start, p.service)
	}
}

// compare enters what becomes of the sessions of one service.
func (m machine) compare(name, service string, ways []way) (killed, restarted int, r churnResult) {
	m.tb.Helper()
	kill := func() { m.Run("systemctl", "kill", "-s", "KILL", service) }
	restart := func() { m.Run("systemctl", "restart", service) }
	killed, restarted = m.survivors(ways, kill), m.survivors(ways, restart)

	m.awaitListener(ways[0])
	l := m.startLoad("churn", order{Ways: ways, Rate: peerRate})
	for _, blow := range []func(){kill, restart, kill, restart} {
		time.Sleep(300 * time.Millisecond) // sessions come meanwhile
		m.Until(name+" is there", func() bool { return m.Property(service, "ActiveState") == "active" })
		blow()
	}
	l.tell("stop")
	l.await(&r)
	require.NotZero(m.tb, r.Begun)
	report.add(name, "of %d open sessions %d survive a SIGKILL, %d a restart; of %d new ones under 2 of each %d refused, %d reset",
		peerSessions, killed, restarted, r.Begun, r.Refused, r.Edge+r.Lost)
	return killed, restarted, r
}

// awaitListener waits for a service that was started a moment ago.
func (m machine) awaitListener(w way) {
	m.tb.Helper()
	port := w.From[strings.LastIndex(w.From, ":")+1:]
	m.Until(w.Name+" listens", func() bool { return m.Run("ss", "-Hltn", "sport = :"+port) != "" })
}

// survivors is how many of the open sessions go on after blow.
func (m machine) survivors(ways []way, blow func()) int {
	m.tb.Helper()
	m.awaitListener(ways[0])
	l := m.startLoad("open", order{Ways: ways, Sessions: peerSessions})
	var r roundResult
	for _, do := range []func(){func() {}, blow} {
		do()
		l.tell("round")
		l.await(&r)
	}
	l.close()
	return r.Sessions - len(r.Lost)
}
