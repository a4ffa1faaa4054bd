package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// A peer is one way from the source to the sink.
type peer struct {
	name string
	// find looks for what the peer needs: version is what it calls itself, an error
	// says what is missing.
	find func() (version string, err error)
	// lay lets the peer listen on a network and pass on to an endpoint. It returns
	// where it listens, and the program that does it, which the caller ends; no
	// program: there is nothing between.
	lay func(ctx context.Context, dir, network string, to endpoint) (endpoint, *child, error)
	// noUDP says why the peer has no UDP row; "": it has.
	noUDP string
	// perProcess says that each session is a process: fewer of them then.
	perProcess bool
	// descriptors is how many of them a session takes, to stay within the limit.
	descriptors int
}

const (
	socketProxyd = "/lib/systemd/systemd-socket-proxyd"
	ownBuffer    = "262144"
	// patience bounds a peer's start.
	patience = 10 * time.Second
	// Above every row's number of sessions, for peers whose own default is below it.
	manySessions = "20000"
)

// allPeers is the list in the order of the first round.
func allPeers(bin string) []peer {
	return []peer{
		{name: "direct", find: func() (string, error) { return "no relay", nil }, lay: layDirect},
		{name: "sockd", find: findSockd(bin), lay: laySockd(bin), descriptors: 2},
		{name: "socat", find: findSocat, lay: laySocat(), perProcess: true},
		{name: "socat -b256k", find: findSocat, lay: laySocat("-b", ownBuffer), perProcess: true},
		{name: "sd-proxyd", find: findProxyd, lay: layProxyd, noUDP: "streams only", descriptors: 6},
		{name: "haproxy", find: finder("haproxy", "-v"), lay: layHaproxy, noUDP: "no UDP relay", descriptors: 2},
		{name: "nginx", find: findNginx, lay: layNginx(""), descriptors: 2},
		{name: "nginx 256k", find: findNginx, lay: layNginx("256k"), descriptors: 2},
	}
}

// A candidate is a peer that was looked for.
type candidate struct {
	peer
	version string
	missing error
}

// choosePeers looks for the peers whose name matches; direct is always there.
func choosePeers(bin string, match *regexp.Regexp) []candidate {
	var out []candidate
	for _, p := range allPeers(bin) {
		if p.name != "direct" && !match.MatchString(p.name) {
			continue
		}
		c := candidate{peer: p}
		c.version, c.missing = p.find()
		out = append(out, c)
	}
	return out
}

// look finds a program in PATH or where system programs are.
func look(name string) (string, error) {
	for _, dir := range []string{"", "/usr/sbin/", "/sbin/", "/usr/local/sbin/"} {
		if path, err := exec.LookPath(dir + name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not installed", name)
}

// finder looks for a program and asks it for its version.
func finder(name string, args ...string) func() (string, error) {
	return func() (string, error) {
		path, err := look(name)
		if err != nil {
			return "", err
		}
		return firstLine(path, args...)
	}
}

// firstLine runs a program that says its version, on standard output or error.
func firstLine(path string, args ...string) (string, error) {
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", path, strings.Join(args, " "), err)
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line, nil
}

func layDirect(_ context.Context, _, network string, to endpoint) (endpoint, *child, error) {
	if network != to.Net {
		return endpoint{}, nil, fmt.Errorf("there is no direct way from %s to %s", network, to.Net)
	}
	return to, nil, nil
}

// front chooses where a peer listens. Between the choice and the peer's bind somebody
// else could take the port: then the peer says so, and the row shows it.
func front(dir, network string) (endpoint, error) {
	switch network {
	case "unix":
		return endpoint{network, filepath.Join(dir, "front.sock")}, nil
	case "udp":
		c, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			return endpoint{}, err
		}
		return endpoint{network, c.LocalAddr().String()}, c.Close()
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return endpoint{}, err
	}
	return endpoint{network, l.Addr().String()}, l.Close()
}

// listening waits until a program accepts connections. A UDP front shows its life
// only by its answers, for which the source waits.
func listening(ctx context.Context, c *child, at endpoint) error {
	if at.Net == "udp" {
		return nil
	}
	for end := time.Now().Add(patience); ; {
		conn, err := net.Dial(at.Net, at.Addr)
		if err == nil {
			return conn.Close()
		}
		if time.Now().After(end) {
			return fmt.Errorf("does not listen within %v: %w", patience, err)
		}
		select {
		case <-c.done:
			return c.why()
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// layProgram starts a program that was told to listen at a place, and waits for it.
func layProgram(ctx context.Context, at endpoint, name string, args ...string) (endpoint, *child, error) {
	c, err := startChild(name, args...)
	if err != nil {
		return endpoint{}, nil, err
	}
	if err := listening(ctx, c, at); err != nil {
		return endpoint{}, nil, errors.Join(err, c.end())
	}
	return at, c, nil
}

///// sockd

func findSockd(bin string) func() (string, error) {
	return func() (string, error) {
		for _, name := range []string{"sockd", "sockd-ctl"} {
			if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
				return "", fmt.Errorf("%w (make build makes it)", err)
			}
		}
		return firstLine(filepath.Join(bin, "sockd"), "--version")
	}
}

// laySockd starts a daemon with nothing configured, and adds one relay with nothing
// but its two ends.
func laySockd(bin string) func(ctx context.Context, dir, network string, to endpoint) (endpoint, *child, error) {
	return func(ctx context.Context, dir, network string, to endpoint) (endpoint, *child, error) {
		control, config := filepath.Join(dir, "control"), filepath.Join(dir, "config")
		if err := os.Mkdir(config, 0o700); err != nil {
			return endpoint{}, nil, err
		}
		_, c, err := layProgram(ctx, endpoint{"unix", control}, filepath.Join(bin, "sockd"),
			"--socket", control, "--config", config, "--state", filepath.Join(dir, "state"), "--log-level", "warn")
		if err != nil {
			return endpoint{}, nil, err
		}
		at, err := addRelay(ctx, bin, control, dir, network, to)
		if err != nil {
			return endpoint{}, nil, errors.Join(err, c.end())
		}
		return at, c, nil
	}
}

func addRelay(ctx context.Context, bin, control, dir, network string, to endpoint) (endpoint, error) {
	from := network + ":127.0.0.1:0"
	if network == "unix" {
		from = "unix:" + filepath.Join(dir, "front.sock")
	}
	var words strings.Builder
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "sockd-ctl"),
		"--socket", control, "--timeout", patience.String(), "relay", "add", "bench", from, to.Net+":"+to.Addr)
	cmd.Stderr = &words
	out, err := cmd.Output()
	if err != nil {
		return endpoint{}, fmt.Errorf("%s: %w", strings.TrimSpace(words.String()), err)
	}
	return parseRelay(string(out))
}

// parseRelay reads what `relay add` prints: NAME NETWORK:ADDRESS.
func parseRelay(line string) (endpoint, error) {
	_, where, ok := strings.Cut(strings.TrimSpace(line), " ")
	network, addr, ok2 := strings.Cut(where, ":")
	if !ok || !ok2 {
		return endpoint{}, fmt.Errorf("relay add printed %q", line)
	}
	return endpoint{strings.TrimRight(network, "46"), addr}, nil
}

///// socat

func findSocat() (string, error) {
	path, err := look("socat")
	if err != nil {
		return "", err
	}
	out, err := exec.Command(path, "-V").Output()
	if err != nil {
		return "", err
	}
	version := regexp.MustCompile(`socat version \S+`).FindString(string(out))
	return version, nil
}

func laySocat(flags ...string) func(ctx context.Context, dir, network string, to endpoint) (endpoint, *child, error) {
	return func(ctx context.Context, dir, network string, to endpoint) (endpoint, *child, error) {
		path, err := look("socat")
		if err != nil {
			return endpoint{}, nil, err
		}
		at, err := front(dir, network)
		if err != nil {
			return endpoint{}, nil, err
		}
		return layProgram(ctx, at, path, append(flags[:len(flags):len(flags)], socatListen(at), socatConnect(to))...)
	}
}

// socatListen is socat's address for listening; a long backlog, since it is slow to
// accept.
func socatListen(at endpoint) string {
	if at.Net == "unix" {
		return "UNIX-LISTEN:" + at.Addr + ",fork,backlog=1024"
	}
	host, port, _ := net.SplitHostPort(at.Addr)
	if at.Net == "udp" {
		return "UDP4-LISTEN:" + port + ",bind=" + host + ",fork"
	}
	return "TCP4-LISTEN:" + port + ",bind=" + host + ",fork,backlog=1024"
}

func socatConnect(to endpoint) string {
	switch to.Net {
	case "unix":
		return "UNIX-CONNECT:" + to.Addr
	case "udp":
		return "UDP4:" + to.Addr
	}
	return "TCP4:" + to.Addr
}

///// systemd-socket-proxyd

func findProxyd() (string, error) {
	if _, err := os.Stat(socketProxyd); err != nil {
		return "", fmt.Errorf("%s is not installed", socketProxyd)
	}
	return firstLine(socketProxyd, "--version")
}

// layProxyd hands systemd-socket-proxyd its listening socket as systemd does
// (sd_listen_fds(3)); the shell is there to know the process's own number.
func layProxyd(_ context.Context, dir, network string, to endpoint) (endpoint, *child, error) {
	at, err := front(dir, network)
	if err != nil {
		return endpoint{}, nil, err
	}
	f, err := listener(at)
	if err != nil {
		return endpoint{}, nil, err
	}
	defer f.Close()
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1; export LISTEN_PID LISTEN_FDS; exec "$0" "$@"`,
		socketProxyd, "--connections-max="+manySessions, to.Addr)
	cmd.ExtraFiles = []*os.File{f}
	c, err := startCommand(cmd)
	return at, c, err
}

// listener opens a listening socket to hand over.
func listener(at endpoint) (*os.File, error) {
	domain, sa, err := sockaddr(at)
	if err != nil {
		return nil, err
	}
	fd, err := syscall.Socket(domain, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), at.Addr)
	if err := errors.Join(syscall.Bind(fd, sa), syscall.Listen(fd, 1<<16-1)); err != nil {
		return nil, errors.Join(fmt.Errorf("listen %s %s: %w", at.Net, at.Addr, err), f.Close())
	}
	return f, nil
}

///// haproxy and nginx

func layHaproxy(ctx context.Context, dir, network string, to endpoint) (endpoint, *child, error) {
	path, err := look("haproxy")
	if err != nil {
		return endpoint{}, nil, err
	}
	at, err := front(dir, network)
	if err != nil {
		return endpoint{}, nil, err
	}
	file := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(file, []byte(haproxyConfig(at, to)), 0o600); err != nil {
		return endpoint{}, nil, err
	}
	return layProgram(ctx, at, path, "-db", "-f", file)
}

// haproxyConfig is haproxy's own default (one thread a CPU, as many sessions as there
// are descriptors), for one stream relay. Only timeouts have none.
func haproxyConfig(at, to endpoint) string {
	return `defaults
	mode tcp
	timeout connect 10s
	timeout client 10m
	timeout server 10m
listen bench
	bind ` + haproxyAddr(at) + `
	server sink ` + haproxyAddr(to) + "\n"
}

func haproxyAddr(e endpoint) string {
	if e.Net == "unix" {
		return "unix@" + e.Addr
	}
	return e.Addr
}

var streamModules = []string{
	"/usr/lib/nginx/modules/ngx_stream_module.so",
	"/usr/lib64/nginx/modules/ngx_stream_module.so",
}

func findNginx() (string, error) {
	path, err := look("nginx")
	if err != nil {
		return "", err
	}
	out, err := exec.Command(path, "-V").CombinedOutput()
	if err != nil {
		return "", err
	}
	if _, err := streamModule(string(out)); err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line, nil
}

// streamModule says which module nginx must load to relay streams, from what nginx -V
// prints; "": it is built in.
func streamModule(built string) (string, error) {
	if regexp.MustCompile(`--with-stream(\s|$)`).MatchString(built) {
		return "", nil
	}
	for _, m := range streamModules {
		if _, err := os.Stat(m); err == nil {
			return m, nil
		}
	}
	return "", errors.New("nginx is here without its stream module (Debian: libnginx-mod-stream)")
}

func layNginx(buffer string) func(ctx context.Context, dir, network string, to endpoint) (endpoint, *child, error) {
	return func(ctx context.Context, dir, network string, to endpoint) (endpoint, *child, error) {
		path, err := look("nginx")
		if err != nil {
			return endpoint{}, nil, err
		}
		out, err := exec.Command(path, "-V").CombinedOutput()
		if err != nil {
			return endpoint{}, nil, err
		}
		module, err := streamModule(string(out))
		if err != nil {
			return endpoint{}, nil, err
		}
		at, err := front(dir, network)
		if err != nil {
			return endpoint{}, nil, err
		}
		file := filepath.Join(dir, "nginx.conf")
		conf := nginxConfig{at: at, to: to, dir: dir, module: module, buffer: buffer, root: os.Geteuid() == 0}
		if err := os.WriteFile(file, []byte(conf.String()), 0o600); err != nil {
			return endpoint{}, nil, err
		}
		return layProgram(ctx, at, path, "-p", dir, "-e", "stderr", "-c", file)
	}
}

// nginxConfig is nginx as its packages have it (one worker a CPU), for one relay.
type nginxConfig struct {
	at, to endpoint
	dir    string
	module string // to load, "" if none
	buffer string // proxy_buffer_size, "" for the default
	root   bool   // workers stay root: the sink's path is only for us
}

func (c nginxConfig) String() string {
	var b strings.Builder
	if c.module != "" {
		fmt.Fprintf(&b, "load_module %s;\n", c.module)
	}
	if c.root {
		b.WriteString("user root;\n")
	}
	fmt.Fprintf(&b, "daemon off;\nworker_processes auto;\npid %s/nginx.pid;\nerror_log stderr crit;\n", c.dir)
	fmt.Fprintf(&b, "events { worker_connections %s; }\n", manySessions)
	fmt.Fprintf(&b, "stream {\n\tserver {\n\t\tlisten %s;\n\t\tproxy_pass %s;\n", c.listen(), nginxAddr(c.to))
	if c.buffer != "" {
		fmt.Fprintf(&b, "\t\tproxy_buffer_size %s;\n", c.buffer)
	}
	b.WriteString("\t}\n}\n")
	return b.String()
}

func (c nginxConfig) listen() string {
	if c.at.Net == "udp" {
		return nginxAddr(c.at) + " udp"
	}
	return nginxAddr(c.at)
}

func nginxAddr(e endpoint) string {
	if e.Net == "unix" {
		return "unix:" + e.Addr
	}
	return e.Addr
}
