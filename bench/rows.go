package main

import (
	"regexp"
	"strings"
	"time"
)

// A row is one thing to measure: a job, between a network to listen on and one to
// pass on to, and what of it is shown.
type row struct {
	name  string // for -row
	title string
	from  string
	to    string
	job   job
	cols  []column // the first is what the row is about
}

// A column shows one number of a sample, as the median over the rounds.
type column struct {
	key    string // in samples and in JSON
	head   string
	digits int
	ratio  bool // a second column with the ratio to direct
	spread bool // with the least and the greatest round
}

// finer shows one more digit.
func (c column) finer() column {
	c.digits++
	return c
}

// What samples are made of. CPU time is per unit of the row's work: GB, request,
// connection or datagram. GB and Gb are powers of ten.
var (
	gbps       = column{key: "gbps", head: "Gb/s", digits: 2, ratio: true, spread: true}
	boxGB      = column{key: "box_s_per_gb", head: "box s/GB", digits: 3}
	relayGB    = column{key: "relay_s_per_gb", head: "relay s/GB", digits: 3}
	rate       = column{key: "per_second", head: "/s", digits: 0, ratio: true, spread: true}
	p50        = column{key: "p50_us", head: "p50 µs", digits: 1, ratio: true}
	p99        = column{key: "p99_us", head: "p99 µs", digits: 1, ratio: true}
	boxOp      = column{key: "box_us_per_op", head: "box µs each", digits: 1}
	relayOp    = column{key: "relay_us_per_op", head: "relay µs each", digits: 1}
	lost       = column{key: "lost_percent", head: "lost %", digits: 2}
	rssKiB     = column{key: "rss_kib_per_session", head: "KiB/session", digits: 2, spread: true}
	pssKiB     = column{key: "pss_kib_per_session", head: "PSS KiB/session", digits: 2}
	perSession = column{key: "descriptors_per_session", head: "fds/session", digits: 2}
	sessions   = column{key: "sessions", head: "sessions", digits: 0}
	emptyMiB   = column{key: "empty_mib", head: "empty MiB", digits: 1}

	// Not shown in columns: how many CPUs others than this bench kept busy.
	othersKey = "others_cpus"
)

var (
	bulkColumns     = []column{gbps, boxGB, relayGB}
	exchangeColumns = []column{rate, p50, p99, boxOp, relayOp}
	idleColumns     = []column{rssKiB, pssKiB, perSession, sessions, emptyMiB}
	udpColumns      = []column{rate, boxOp, relayOp, lost}
	burstColumns    = []column{rate, boxOp.finer(), relayOp.finer(), lost}
)

const (
	// A request of the exchange rows, in bytes.
	requestSize = 64
	// How many idle sessions: the most, and for peers with a process each.
	idleSessions   = 9000
	forkedSessions = 300
)

// The default receive buffer of Linux, 212992 bytes, is charged a datagram's whole
// allocation: about 0.75 KiB for one of 64 bytes, 2.25 KiB for one of 1400. Windows
// below what it holds lose nothing to overrun, in a relay that asks for no more.
//
// The kernel charges a burst that it may leave whole (UDP_GRO) hardly more than its
// bytes: 2.8 KiB for 32 datagrams of 64 bytes, 22.7 KiB for 16 of 1400. One that it
// cuts for a socket that wants no bursts is charged datagram by datagram: 28 and
// 35 KiB. So the same windows do, of four bursts each.
const (
	smallWindow = 128
	largeWindow = 64
	smallBurst  = smallWindow / 4
	largeBurst  = largeWindow / 4
)

func allRows() []row {
	return []row{
		bulkRow("bulk-tcp-tcp", "bulk, TCP to TCP", "tcp", "tcp"),
		bulkRow("bulk-tcp-unix", "bulk, TCP to unix", "tcp", "unix"),
		bulkRow("bulk-unix-unix", "bulk, unix to unix", "unix", "unix"),
		exchangeRow("rr-1", "request and response of 64 B, 1 connection", 1),
		exchangeRow("rr-64", "request and response of 64 B, 64 connections", 64),
		exchangeRow("rr-512", "request and response of 64 B, 512 connections", 512),
		{
			name: "crr", title: "connect, request, close, one after the other", from: "tcp", to: "tcp", cols: exchangeColumns,
			// A count that leaves most of the ephemeral ports free.
			job: job{Kind: reconnect, Size: requestSize, Count: 10_000, For: 1500 * time.Millisecond},
		},
		{
			name: "idle", title: "idle sessions, above the empty relay", from: "tcp", to: "tcp", cols: idleColumns,
			job: job{Kind: idle, Size: requestSize, Conns: idleSessions},
		},
		udpRow("udp-64-1", "UDP echo, 64 B, 1 client", 64, 1, smallWindow),
		udpRow("udp-64-1000", "UDP echo, 64 B, 1,000 clients", 64, 1000, smallWindow),
		udpRow("udp-1400-1", "UDP echo, 1400 B, 1 client", 1400, 1, largeWindow),
		udpRow("udp-1400-1000", "UDP echo, 1400 B, 1,000 clients", 1400, 1000, largeWindow),
		burstRow("udp-gso-64-1", "UDP echo, bursts of 32 by 64 B, 1 client", 64, 1, smallWindow, smallBurst),
		burstRow("udp-gso-64-1000", "UDP echo, bursts of 32 by 64 B, 1,000 clients", 64, 1000, smallWindow, smallBurst),
		burstRow("udp-gso-1400-1", "UDP echo, bursts of 16 by 1400 B, 1 client", 1400, 1, largeWindow, largeBurst),
		burstRow("udp-gso-1400-1000", "UDP echo, bursts of 16 by 1400 B, 1,000 clients", 1400, 1000, largeWindow, largeBurst),
	}
}

func bulkRow(name, title, from, to string) row {
	return row{name: name, title: title + ", 1 stream", from: from, to: to, cols: bulkColumns,
		job: job{Kind: bulk, Bytes: 1 << 30, For: 2 * time.Second}}
}

func exchangeRow(name, title string, conns int) row {
	return row{name: name, title: title, from: "tcp", to: "tcp", cols: exchangeColumns,
		job: job{Kind: exchange, Conns: conns, Size: requestSize, For: time.Second}}
}

func udpRow(name, title string, size, clients, window int) row {
	return row{name: name, title: title, from: "udp", to: "udp", cols: udpColumns,
		job: job{Kind: datagrams, Clients: clients, Size: size, Window: window, For: time.Second}}
}

// burstRow is udpRow with clients that send as QUIC stacks do: a burst of datagrams
// in one system call, which the kernel cuts as late as it can.
func burstRow(name, title string, size, clients, window, burst int) row {
	r := udpRow(name, title, size, clients, window)
	r.job.Burst, r.cols = burst, burstColumns
	return r
}

// chooseRows are the rows whose name matches, shortened if quick.
func chooseRows(quick bool, match *regexp.Regexp) []row {
	var out []row
	for _, r := range allRows() {
		if !match.MatchString(r.name) {
			continue
		}
		if quick {
			r.job = shorten(r.job)
		}
		out = append(out, r)
	}
	return out
}

func shorten(j job) job {
	j.For = min(j.For, 200*time.Millisecond)
	j.Bytes = min(j.Bytes, 256<<20)
	j.Count = min(j.Count, 1000)
	if j.Kind == idle {
		j.Conns = 500
	}
	return j
}

func rowNames() string {
	var names []string
	for _, r := range allRows() {
		names = append(names, r.name)
	}
	return strings.Join(names, " ")
}

// fit makes a row one that a peer can carry, or says why it cannot.
func (r row) fit(p peer, limit int) (fitted row, whyNot string) {
	switch {
	case p.name == "direct" && r.job.Kind == idle:
		return r, "no relay, nothing to hold"
	case p.name == "direct":
		// What the client would have without a relay: the network that it speaks.
		r.to = r.from
	case r.from == "udp" && p.noUDP != "":
		return r, p.noUDP
	case r.job.Kind == datagrams && r.job.Clients > 1 && p.perProcess:
		return r, "starts a process a client, which never ends"
	case r.job.Kind == idle && p.perProcess:
		r.job.Conns = min(r.job.Conns, forkedSessions)
	case r.job.Kind == idle:
		// Some descriptors are a program's own.
		r.job.Conns = min(r.job.Conns, (limit-200)/p.descriptors)
	}
	return r, ""
}
