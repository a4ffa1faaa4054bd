package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// briefTrials are all trials, with their waits cut to what still shows the same.
func briefTrials() map[string]trial {
	all := closingTrials(50 * time.Millisecond)
	all = append(all, failingTrials()...)
	all = append(all, datagramTrials()...)
	all = append(all, unixTrials()...)
	all = append(all, identityTrials()...)
	all = append(all, pressureTrials(300*time.Millisecond)...)
	all = append(all, operationTrials(4, 20*time.Millisecond)...)
	out := map[string]trial{}
	for _, t := range all {
		out[t.name] = t
	}
	return out
}

// mustAct is one trial of one contestant.
func mustAct(t *testing.T, tr trial, p contestant) finding {
	t.Helper()
	b := &rig{dir: t.TempDir()}
	f, err := b.act(t.Context(), tr, p)
	require.NoError(t, err)
	left, err := os.ReadDir(b.dir)
	require.NoError(t, err)
	require.Empty(t, left, "each trial removes its folder")
	return f
}

// What direct does is what every ✓ stands for, so it must be what TCP, UDP and unix
// sockets promise.
func TestDirectDoesWhatTheSocketsPromise(t *testing.T) {
	answered := "1048576 B, FIN"
	want := map[string]string{
		"half-close-tcp-tcp": answered, "half-close-tcp-unix": answered,
		"half-close-unix-tcp": answered, "half-close-unix-unix": answered,
		"half-close-backend":  answered,
		"rst-server":          "1000 B, RST",
		"rst-client":          "1000 B, RST",
		"urgent":              "urgent, in order",
		"urgent-back":         "urgent, in order",
		"refused":             "refused",
		"timed-out":           "no connection",
		"early-answer":        "arrives",
		"unix-unread":         "1000 B, RST",
		"udp-clients":         "nothing",
		"udp-sizes":           "whole",
		"udp-refused":         "refused",
		"udp-source":          "127.0.0.2",
		"seqpacket":           "1 0 300 60000 B",
		"unixgram":            "1 0 300 60000 B",
		"unixgram-answer":     "answered",
		"rights":              "arrives",
		"client-never-reads":  "bounded",
		"backend-never-reads": "bounded",
	}
	for name, tr := range briefTrials() {
		if why := compareDirect().can.lacks(tr.wish); why != "" {
			require.Equal(t, "nothing between", why)
			require.NotEmpty(t, tr.best, "%s: without direct there is nothing to be as good as", name)
			require.NotContains(t, want, name)
			continue
		}
		require.Contains(t, want, name)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, want[name], mustAct(t, tr, compareDirect()).word)
		})
	}
}

// naive is a relay as one writes it first: it copies both ways with a small buffer and
// hangs up when one way has ended.
func naive() contestant {
	p := contestant{name: "naive", can: compareDirect().can}
	p.can.direct = false
	p.lay = func(_ context.Context, dir string, w wish, to endpoint) (*laid, error) {
		at, err := place(dir, w)
		if err != nil {
			return nil, err
		}
		if w.from == "udp" {
			return layNaivePackets(at, to)
		}
		return layNaive(at, to)
	}
	return p
}

// naiveChild is a child that does nothing, whose end ends the relay in this process.
func naiveChild(stop func()) (*child, error) {
	c, err := startChild("/bin/cat")
	if err != nil {
		return nil, err
	}
	go func() { <-c.done; stop() }() // which ends with the trial
	return c, nil
}

func layNaive(at, to endpoint) (*laid, error) {
	l, err := net.Listen(at.Net, at.Addr)
	if err != nil {
		return nil, err
	}
	c, err := naiveChild(func() { _ = l.Close() })
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go naiveSession(conn, to)
		}
	}()
	return &laid{at: at, relay: c}, nil
}

func naiveSession(client net.Conn, to endpoint) {
	defer client.Close()
	backend, err := net.Dial(to.Net, to.Addr)
	if err != nil {
		return
	}
	defer backend.Close()
	over := make(chan struct{}, 2)
	pump := func(dst io.Writer, src io.Reader) {
		_, _ = io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, make([]byte, 4096))
		over <- struct{}{}
	}
	go pump(backend, client)
	go pump(client, backend)
	<-over
}

// layNaivePackets serves one client at a time, and cuts.
func layNaivePackets(at, to endpoint) (*laid, error) {
	in, err := net.ListenPacket("udp4", at.Addr)
	if err != nil {
		return nil, err
	}
	c, err := naiveChild(func() { _ = in.Close() })
	if err != nil {
		return nil, errors.Join(err, in.Close())
	}
	go func() {
		p := make([]byte, 8192)
		for {
			n, from, err := in.ReadFrom(p)
			if err != nil {
				return
			}
			answer := naiveAsk(to, p[:n])
			if answer != nil {
				_, _ = in.WriteTo(answer, from)
			}
		}
	}()
	return &laid{at: at, relay: c}, nil
}

func naiveAsk(to endpoint, p []byte) []byte {
	out, err := net.Dial("udp4", to.Addr)
	if err != nil {
		return nil
	}
	defer out.Close()
	_ = out.SetDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := out.Write(p); err != nil {
		return nil
	}
	answer := make([]byte, 1<<16)
	n, err := out.Read(answer)
	if err != nil {
		return nil
	}
	return answer[:n]
}

// A trial that a naive relay passes would tell nobody apart.
func TestANaiveRelayIsFoundOut(t *testing.T) {
	want := map[string]string{
		"half-close-tcp-tcp":  "0 B, FIN",
		"half-close-unix-tcp": "0 B, FIN",
		"half-close-backend":  "0 B, FIN",
		"rst-server":          "1000 B, FIN",
		"rst-client":          "1000 B, FIN",
		"urgent":              "lost",
		"refused":             "FIN",
		"udp-sizes":           "9000 B cut to 8192, 65507 B cut to 8192",
		"udp-refused":         "nothing",
		"udp-source":          "127.0.0.1",
		"seqpacket":           "1 B",
		"rights":              "1 B without it",
	}
	for name, word := range want {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr := briefTrials()[name]
			f := mustAct(t, tr, naive())
			hungUp := strings.Contains(f.word, "broken pipe") || strings.Contains(f.word, "RST")
			if name != "seqpacket" || !hungUp {
				require.Equal(t, word, f.word)
			} // else that was at the empty message, before the client had sent the next
			require.NotEqual(t, tr.best, f.word)
		})
	}
}

// pretender says that it can do everything and puts nothing between.
func pretender(start string) contestant {
	p := compareSockd("")
	p.name = "pretender"
	p.lay = func(_ context.Context, _ string, _ wish, to endpoint) (*laid, error) {
		c, err := startChild("/bin/sh", "-c", start)
		return &laid{at: to, relay: c, reload: func(context.Context, endpoint) error { return nil }}, err
	}
	return p
}

func TestConfiguredTrialsSeeThatNobodyDoesThem(t *testing.T) {
	for name, word := range map[string]string{
		"proxy-v1":      "no header",
		"proxy-v2":      "no header",
		"proxy-from-v1": "the client's, or none", // what it sent itself
		"proxy-from-v2": "v2 192.0.2.7:4242",
		"uid-unix":      "served, served",
		"uid-tcp":       "served, served",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr := briefTrials()[name]
			require.Equal(t, word, mustAct(t, tr, pretender("exec cat")).word)
			require.NotEqual(t, tr.best, word)
		})
	}
}

func TestASpinningRelayIsFoundOut(t *testing.T) {
	t.Parallel()
	f := mustAct(t, briefTrials()["emfile"], pretender("while :; do :; done"))
	require.Equal(t, "served, spins", f.word)
}

func TestAReloadThatHangsUpIsFoundOut(t *testing.T) {
	t.Parallel()
	tr := briefTrials()["reload"]
	require.Equal(t, tr.best, mustAct(t, tr, pretender("exec cat")).word, "nothing reloads, nobody is hurt")

	p := pretender("exec cat")
	p.lay = func(_ context.Context, dir string, w wish, to endpoint) (*laid, error) {
		at, err := place(dir, w)
		if err != nil {
			return nil, err
		}
		l, err := layNaive(at, to)
		if err != nil {
			return nil, err
		}
		l.reload = func(context.Context, endpoint) error { return l.relay.end() } // and nothing comes after
		return l, nil
	}
	require.Equal(t, "some, and the open session stays", mustAct(t, tr, p).word)
}

func TestMemoryWords(t *testing.T) {
	none := &laid{}
	require.Equal(t, "bounded", judgeMemory(none, 100, 4<<20).word)
	require.Equal(t, "unbounded", judgeMemory(none, boundedKiB+1, 4<<20).word, "the relay has grown")
	require.Equal(t, "unbounded", judgeMemory(none, 0, blastLimit).word, "somebody took it all")
	require.Equal(t, "+100 KiB, 4.0 MiB taken from the sender", judgeMemory(&laid{relay: &child{}}, 100, 4<<20).detail)
}

func TestLeftBehindWords(t *testing.T) {
	require.Equal(t, finding{"nothing", "+0 processes, +3 descriptors"}, judgeLeft(0, 3))
	require.Equal(t, "a descriptor each", judgeLeft(0, udpVisitors).word)
	require.Equal(t, "a process each", judgeLeft(udpVisitors, 5*udpVisitors).word)
}

func TestReloadWords(t *testing.T) {
	require.Equal(t, keepsAll, judgeReload(10, 0, nil).word)
	require.Equal(t, finding{"some, and the open session stays", "3 of 10"}, judgeReload(10, 3, nil))
	require.Equal(t, "nobody, and the open session ends", judgeReload(10, 0, io.EOF).word)
}

func TestTally(t *testing.T) {
	require.Equal(t, "RST", tally(map[string]int{"RST": 10}, 10))
	require.Equal(t, "3 of 10: FIN; 7 of 10: RST", tally(map[string]int{"RST": 7, "FIN": 3}, 10))
}

func TestProxyHeadersAreRead(t *testing.T) {
	for name, header := range map[string][]byte{"v1": headerV1(far, far), "v2": headerV2(far, far)} {
		t.Run(name, func(t *testing.T) {
			r := bufio.NewReader(bytes.NewReader(append(header, "rest"...)))
			got, err := readProxy(r)
			require.NoError(t, err)
			require.Equal(t, name+" "+far.String(), got)
			rest, err := io.ReadAll(r)
			require.NoError(t, err)
			require.Equal(t, "rest", string(rest), "and not a byte more")
		})
	}
	_, err := readProxy(bufio.NewReader(strings.NewReader("")))
	require.ErrorIs(t, err, io.EOF)
	for name, text := range map[string]string{"three bytes": "PRO", "another protocol": "GET / HTTP/1.1\r\n"} {
		_, err := readProxy(bufio.NewReader(strings.NewReader(text)))
		require.ErrorIs(t, err, errNoHeader, name)
	}
	for name, text := range map[string]string{
		"a v1 that is cut":    "PROXY TCP4 1.2.3.4",
		"a v1 without a name": "PROXY UNKNOWN\r\n",
		"a v2 that is cut":    proxySignature + "\x21\x11",
		"a v2 of nobody":      proxySignature + "\x20\x11\x00\x0c" + strings.Repeat("x", 12),
	} {
		_, err := readProxy(bufio.NewReader(strings.NewReader(text)))
		require.ErrorContains(t, err, "header ", name)
	}
}

///// how the peers are asked

func TestPeersAreToldTheWish(t *testing.T) {
	tcp, back := endpoint{"tcp", "127.0.0.1:1"}, endpoint{"unix", "/back"}
	full := wish{from: "tcp", to: "unix", accept: true, send: "v2", patience: time.Second}

	conf := haproxyWish(tcp, full, back)
	require.Contains(t, conf, "\tbind 127.0.0.1:1 accept-proxy\n\tserver sink unix@/back send-proxy-v2\n")
	require.Contains(t, conf, "timeout connect 1000ms")
	require.Contains(t, haproxyWish(tcp, wish{send: "v1"}, back), "send-proxy\n")

	conf = nginxWish("/d", "/m.so", tcp, full, back)
	for _, want := range []string{"load_module /m.so;", "listen 127.0.0.1:1 proxy_protocol;", "set_real_ip_from 127.0.0.0/8;",
		"proxy_pass unix:/back;", "proxy_protocol on;", "proxy_connect_timeout 1000ms;"} {
		require.Contains(t, conf, want)
	}
	require.Contains(t, nginxWish("/d", "", tcp, wish{}, back, "proxy_half_close on"), "\t\tproxy_half_close on;\n")
	require.Contains(t, nginxWish("/d", "", endpoint{"udp", "0.0.0.0:1"}, wish{}, back), "listen 0.0.0.0:1 udp;")

	full.uid, full.rights = "7", true
	require.Equal(t, []string{"tcp:127.0.0.1:1,proxy=accept", "unix:/back,proxy=v2", "--pass", "rights", "--allow", "uid:7", "--connect-timeout", "1s"},
		sockdRelay(tcp, full, back))
	require.Equal(t, []string{"tcp:127.0.0.1:1", "unix:/back"}, sockdRelay(tcp, wish{}, back), "and nothing that was not wished for")

	gram := endpoint{"unixgram", "/front"}
	require.Equal(t, []string{"-u", "UNIX-RECV:/front", "UNIX-SENDTO:/back"}, socatRelay(gram, wish{}, back))
	require.Contains(t, socatRelay(tcp, wish{patience: time.Second}, back), "UNIX-CONNECT:/back,connect-timeout=1")
	require.Contains(t, socatRelay(endpoint{"unixpacket", "/front"}, wish{}, back), "UNIX-CONNECT:/back,type=5")
}

func TestWhoLacksWhat(t *testing.T) {
	peers := slices.DeleteFunc(chooseContestants("nowhere", regexp.MustCompile("")), func(c contestant) bool {
		return strings.HasSuffix(c.name, " tuned") // can what the others can
	})
	lacks := map[string]string{}
	for _, w := range []struct {
		name string
		wish wish
	}{
		{"udp", wish{from: "udp", to: "udp"}},
		{"v2", wish{from: "tcp", to: "tcp", send: "v2"}},
		{"uid", wish{from: "tcp", to: "tcp", uid: "0"}},
	} {
		for _, p := range peers {
			lacks[w.name+" "+p.name] = p.can.lacks(w.wish)
		}
	}
	require.Equal(t, map[string]string{
		"udp direct": "", "udp sockd": "", "udp socat": "", "udp sd-proxyd": "no udp", "udp haproxy": "no udp", "udp nginx": "",
		"v2 direct": "nothing between", "v2 sockd": "", "v2 socat": "no PROXY v2 out", "v2 sd-proxyd": "no PROXY v2 out", "v2 haproxy": "", "v2 nginx": "no PROXY v2 out",
		"uid direct": "nothing between", "uid sockd": "", "uid socat": "no rule by uid", "uid sd-proxyd": "no rule by uid",
		"uid haproxy": "no rule by uid", "uid nginx": "no rule by uid",
	}, lacks)
	require.Contains(t, peers[1].missing(), "make build", "sockd is not built there")
}

func TestListedOnlyWhenBound(t *testing.T) {
	for _, network := range []string{"tcp", "udp", "unix", "unixgram", "unixpacket"} {
		t.Run(network, func(t *testing.T) {
			at, err := place(t.TempDir(), wish{from: network})
			require.NoError(t, err)
			there, err := listed(at)
			require.NoError(t, err)
			require.False(t, there)

			var bound io.Closer
			if network == "udp" || network == "unixgram" {
				bound, err = net.ListenPacket(at.Net, at.Addr)
			} else {
				bound, err = net.Listen(at.Net, at.Addr)
			}
			require.NoError(t, err)
			defer bound.Close()
			// Sockets that come and go meanwhile may hide one from a reader of /proc/net.
			require.Eventually(t, func() bool { there, err := listed(at); return err == nil && there }, patience, time.Millisecond)
		})
	}
}

func TestARelayThatEndsSaysWhy(t *testing.T) {
	_, err := layListening(t.Context(), endpoint{"unix", filepath.Join(t.TempDir(), "no")}, limited(0, "/bin/sh", "-c", "echo no licence >&2; exit 3"))
	require.ErrorContains(t, err, "no licence")
}

func TestLimitedHasFewDescriptors(t *testing.T) {
	out, err := limited(77, "/bin/sh", "-c", "ulimit -n").Output()
	require.NoError(t, err)
	require.Equal(t, "77\n", string(out))
}

///// the document

func TestMarks(t *testing.T) {
	l := line{trial: trial{name: "x", title: "x", best: "RST"}, verdicts: []verdict{
		{finding: finding{word: "refused"}},
		{finding: finding{word: "RST"}},
		{finding: finding{word: "refused"}},
		{finding: finding{word: "FIN"}},
		{cannot: "no udp"},
		{failed: errors.New("no luck")},
	}}
	for i, want := range []string{"refused", "✓", "✓", "✗ FIN", "— no udp", "✗ failed: no luck"} {
		require.Equal(t, want, l.mark(i))
	}
	l.best, l.verdicts[0] = "", verdict{cannot: "nothing between"}
	require.Equal(t, "✗ RST", l.mark(1), "nobody showed what is good")
	l.verdicts[1].word = ""
	require.Equal(t, "✗ ", l.mark(1))
}

func TestDocIsWrittenBetweenItsMarks(t *testing.T) {
	c := &comparison{
		peers: []contestant{{name: "direct"}, {name: "sockd", version: "sockd 1"}},
		lines: []line{{trial: trial{title: "a | b", means: "pain"}, verdicts: []verdict{{finding: finding{word: "FIN"}}, {finding: finding{"FIN", "quickly"}}}}},
	}
	file := filepath.Join(t.TempDir(), "doc.md")
	text := "head\n" + docBegin + "old\n" + docEnd + "tail\n"
	require.NoError(t, os.WriteFile(file, []byte(text), 0o644))
	for range 2 { // the second time changes nothing
		require.NoError(t, rewriteDoc(file, c))
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Equal(t, fmt.Sprintf("head\n%s\nMeasured on %s.\n\n- sockd: sockd 1\n\n"+
			"| what is tried | direct | sockd |\n| --- | --- | --- |\n| a \\| b | FIN | ✓ |\n\n"+
			"| row | what a ✗ means | seen |\n| --- | --- | --- |\n| a \\| b | pain | sockd: quickly |\n\n%stail\n", docBegin, machine(), docEnd), string(b))
	}
	_, err := between("no marks", c)
	require.ErrorContains(t, err, "wants the lines")
}

// The document in the tree has marks, and a row for each trial.
func TestTheDocumentHasEveryRow(t *testing.T) {
	b, err := os.ReadFile("../docs/comparison.md")
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(b), docBegin)
	require.True(t, ok)
	for _, tr := range allTrials() {
		require.Contains(t, rest, "| "+tr.title+" |", "run: make compare")
	}
}

func TestTrialsAreNamedOnce(t *testing.T) {
	require.Len(t, briefTrials(), len(allTrials()))
	for _, tr := range allTrials() {
		require.NotEmpty(t, tr.means, tr.name)
	}
}

func TestCompareFlags(t *testing.T) {
	o, err := parseCompareFlags([]string{"-row", "^udp", "-peer", "nginx", "-bin", "b"})
	require.NoError(t, err)
	require.True(t, o.row.MatchString("udp-sizes"))
	require.Equal(t, "b", o.bin)
	for name, args := range map[string][]string{
		"a row that is no RE":      {"-row", "("},
		"an argument":              {"all"},
		"a document with a part":   {"-doc", "x", "-row", "udp"},
		"a document without nginx": {"-doc", "x", "-peer", "sockd"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseCompareFlags(args)
			require.Error(t, err)
		})
	}
}

func TestCompareReportsAndRefusesNoRow(t *testing.T) {
	var words strings.Builder
	o, err := parseCompareFlags([]string{"-bin", t.TempDir(), "-row", "^unixgram$", "-peer", "^sockd$"})
	require.NoError(t, err)
	c, err := compare(t.Context(), o, &words)
	require.NoError(t, err)
	require.Len(t, c.lines, 1)
	require.Contains(t, words.String(), "direct      1 0 300 60000 B\n")
	require.Contains(t, words.String(), "sockd       — not here: ")

	o.row = regexp.MustCompile("^nothing$")
	_, err = compare(t.Context(), o, &words)
	require.ErrorContains(t, err, "matches no row")
}
