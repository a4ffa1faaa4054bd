package main

import (
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestHaproxyConfig(t *testing.T) {
	conf := haproxyConfig(endpoint{"tcp", "127.0.0.1:1"}, endpoint{"unix", "/run/x"})
	require.Contains(t, conf, "\tbind 127.0.0.1:1\n\tserver sink unix@/run/x\n")
	require.NotContains(t, conf, "splice", "its default")
}

func TestNginxConfig(t *testing.T) {
	c := nginxConfig{at: endpoint{"udp", "127.0.0.1:1"}, to: endpoint{"udp", "127.0.0.1:2"}, dir: "/d"}
	require.Equal(t, `daemon off;
worker_processes auto;
pid /d/nginx.pid;
error_log stderr crit;
events { worker_connections 20000; }
stream {
	server {
		listen 127.0.0.1:1 udp;
		proxy_pass 127.0.0.1:2;
	}
}
`, c.String())

	c = nginxConfig{at: endpoint{"unix", "/a"}, to: endpoint{"unix", "/b"}, dir: "/d", module: "/m.so", buffer: "256k", root: true}
	for _, want := range []string{"load_module /m.so;\nuser root;\n", "listen unix:/a;", "proxy_pass unix:/b;", "proxy_buffer_size 256k;"} {
		require.Contains(t, c.String(), want)
	}
}

func TestStreamModule(t *testing.T) {
	got, err := streamModule("configure arguments: --with-stream --with-stream_ssl_module")
	require.NoError(t, err)
	require.Empty(t, got, "built in")

	defer func(m []string) { streamModules = m }(streamModules)
	streamModules = []string{"/nowhere/ngx_stream_module.so", "/dev/null"}
	got, err = streamModule("--with-stream=dynamic")
	require.NoError(t, err)
	require.Equal(t, "/dev/null", got, "the first that is there")

	streamModules = streamModules[:1]
	_, err = streamModule("--with-stream=dynamic --with-stream_ssl_module")
	require.ErrorContains(t, err, "libnginx-mod-stream")
}

func TestSocatAddresses(t *testing.T) {
	for _, c := range []struct{ e, listen, connect string }{
		{"tcp", "TCP4-LISTEN:80,bind=127.0.0.1,fork,backlog=1024", "TCP4:127.0.0.1:80"},
		{"udp", "UDP4-LISTEN:80,bind=127.0.0.1,fork", "UDP4:127.0.0.1:80"},
	} {
		e := endpoint{c.e, "127.0.0.1:80"}
		require.Equal(t, c.listen, socatListen(e))
		require.Equal(t, c.connect, socatConnect(e))
	}
	require.Equal(t, "UNIX-LISTEN:/x,fork,backlog=1024", socatListen(endpoint{"unix", "/x"}))
	require.Equal(t, "UNIX-CONNECT:/x", socatConnect(endpoint{"unix", "/x"}))
}

func TestParseRelay(t *testing.T) {
	for line, want := range map[string]endpoint{
		"bench tcp:127.0.0.1:4711\n":  {"tcp", "127.0.0.1:4711"},
		"bench udp4:127.0.0.1:4711\n": {"udp", "127.0.0.1:4711"},
		"bench unix:/tmp/a b\n":       {"unix", "/tmp/a b"},
	} {
		got, err := parseRelay(line)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	for _, line := range []string{"", "bench", "bench nothing"} {
		_, err := parseRelay(line)
		require.Error(t, err, "%q", line)
	}
}

func TestMissingPeersAreNamed(t *testing.T) {
	got := choosePeers(t.TempDir(), regexp.MustCompile("^sockd$"))
	require.Len(t, got, 2)
	require.Equal(t, "direct", got[0].name, "direct always runs")
	require.NoError(t, got[0].missing)
	require.ErrorContains(t, got[1].missing, "make build")
}

func TestClientsHaveAddressesOfTheirOwn(t *testing.T) {
	seen := map[[4]byte]bool{}
	for i := range 50_000 {
		a := clientAddr(i)
		require.False(t, seen[a], "%v", a)
		seen[a] = true
		require.EqualValues(t, 127, a[0], "stays on loopback")
	}
}
