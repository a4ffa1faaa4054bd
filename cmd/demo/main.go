// Command demo walks sockd's main job on real traffic: it starts a daemon on a
// private control socket, runs the commands that a user would type, prints each
// with its real result, and ends by itself. It needs nothing but the two binaries
// in its -bin folder (`make demo` builds them), changes nothing on the host, and
// exits 0 only when every step did what it should.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"
)

// patience bounds each step, so that a demo that hangs says where.
const patience = 20 * time.Second

func main() {
	bin := flag.String("bin", "bin", "the folder with sockd and sockd-ctl")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *bin); err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		stop()
		os.Exit(1)
	}
}

// A demo is one walk: a daemon, its control socket, and a folder that goes in the end.
type demo struct {
	ctx    context.Context
	bin    string
	dir    string
	socket string
	daemon *exec.Cmd
	left   []string // what was left out, and why
}

func run(ctx context.Context, bin string) (err error) {
	bin, err = filepath.Abs(bin)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "sockd-demo")
	if err != nil {
		return err
	}
	d := &demo{ctx: ctx, bin: bin, dir: dir, socket: filepath.Join(dir, "control")}
	defer func() { err = errors.Join(err, d.end()) }()
	for _, step := range []struct {
		title string
		do    func() error
	}{
		{"A daemon on a private control socket", d.start},
		{"inet stream: the procedure of a server and its client", func() error { return d.procedure("inet", "stream", "127.0.0.1:0") }},
		{"inet6 stream: the same words", d.inet6},
		{"local seqpacket: the same words, and messages keep their borders", func() error { return d.procedure("local", "seqpacket", filepath.Join(d.dir, "seq")) }},
		{"inet dgram: no connection, every message names its sender", d.datagrams},
		{"packet raw: Ethernet frames", d.frames},
		{"A TCP port relayed to an HTTP server on a unix socket, and captured", d.relay},
		{"What there is now", d.list},
	} {
		fmt.Printf("\n== %s\n", step.title)
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.title, err)
		}
	}
	fmt.Printf("\n== Done\n")
	for _, l := range d.left {
		fmt.Println("left out: " + l)
	}
	return nil
}

// start runs the daemon and waits for its control socket to accept.
func (d *demo) start() error {
	config := filepath.Join(d.dir, "config")
	if err := os.Mkdir(config, 0o755); err != nil {
		return err
	}
	args := []string{"--socket", d.socket, "--config", config, "--state", filepath.Join(d.dir, "state"), "--log-level", "warn"}
	fmt.Printf("$ sockd %s &\n", strings.Join(args, " "))
	d.daemon = exec.Command(filepath.Join(d.bin, "sockd"), args...)
	d.daemon.Stderr = os.Stderr
	if err := d.daemon.Start(); err != nil {
		d.daemon = nil
		return err
	}
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("unix", d.socket)
		if err == nil {
			_ = c.Close() // it only asked whether anybody is there
			break
		}
		if time.Now().After(end) {
			return err
		}
	}
	_, err := d.ctl("status")
	return err
}

// end stops the daemon, waits for it and removes the folder.
func (d *demo) end() error {
	var err error
	if d.daemon != nil {
		_ = d.daemon.Process.Signal(os.Interrupt) // if it is gone, Wait says how
		err = d.daemon.Wait()
	}
	return errors.Join(err, os.RemoveAll(d.dir))
}

// command is sockd-ctl on the demo's control socket.
func (d *demo) command(args ...string) *exec.Cmd {
	c := exec.CommandContext(d.ctx, filepath.Join(d.bin, "sockd-ctl"), args...)
	c.Env = append(os.Environ(), "SOCKD_SOCKET="+d.socket)
	return c
}

// ctl runs sockd-ctl as typed, shows what it prints, and returns its stdout.
func (d *demo) ctl(args ...string) (string, error) {
	fmt.Printf("$ sockd-ctl %s\n", quote(args))
	c := d.command(append([]string{"--timeout", patience.String()}, args...)...)
	var out, words bytes.Buffer
	c.Stdout, c.Stderr = &out, &words
	err := c.Run()
	show(out.String())
	show(words.String())
	return strings.TrimSuffix(out.String(), "\n"), err
}

func show(s string) {
	if s == "" {
		return
	}
	for _, line := range strings.Split(strings.TrimSuffix(s, "\n"), "\n") {
		fmt.Println("  " + line)
	}
}

// quote writes arguments as a shell would read them.
func quote(args []string) string {
	out := make([]string, len(args))
	for i, a := range args {
		if a == "" || strings.ContainsAny(a, " *'\"\\$&|<>()#;") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		out[i] = a
	}
	return strings.Join(out, " ")
}

// want compares what a step gave with what it should.
func want(what, got, wanted string) error {
	if got != wanted {
		return fmt.Errorf("%s: got %q; want %q", what, got, wanted)
	}
	return nil
}

// script runs commands in order. $NAME in an argument stands for what an earlier
// line "NAME=..." printed (its first word).
func (d *demo) script(lines ...[]string) (map[string]string, error) {
	vars := map[string]string{}
	expand := func(s string) string {
		return os.Expand(s, func(name string) string { return vars[name] })
	}
	for _, l := range lines {
		name, args := l[0], make([]string, len(l)-1)
		for i, a := range l[1:] {
			args[i] = expand(a)
		}
		out, err := d.ctl(args...)
		if err != nil {
			return nil, err
		}
		if name != "" {
			vars[name], _, _ = strings.Cut(out, " ")
		}
	}
	return vars, nil
}

func (d *demo) procedure(family, typ, addr string) error {
	vars, err := d.script(
		[]string{"server", "open", family, typ},
		[]string{"addr", "bind", "$server", addr},
		[]string{"", "listen", "$server", "16"},
		[]string{"client", "open", family, typ},
		[]string{"", "connect", "$client", "$addr"},
		[]string{"conn", "accept", "$server"},
		[]string{"", "send", "$client", "a question"},
		[]string{"asked", "recv", "$conn", "--hex"},
		[]string{"", "send", "$conn", "an answer"},
		[]string{"answered", "recv", "$client", "--hex"},
		[]string{"", "close", "$client", "$conn", "$server"},
	)
	if err != nil {
		return err
	}
	if err := want("the question", vars["asked"], fmt.Sprintf("%x", "a question")); err != nil {
		return err
	}
	return want("the answer", vars["answered"], fmt.Sprintf("%x", "an answer"))
}

// inet6 is left out on a host whose loopback has no IPv6.
func (d *demo) inet6() error {
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		return d.leaveOut(fmt.Sprintf("inet6: this host has none (%v)", err))
	}
	if err := l.Close(); err != nil {
		return err
	}
	return d.procedure("inet6", "stream", "[::1]:0")
}

func (d *demo) datagrams() error {
	vars, err := d.script(
		[]string{"a", "open", "inet", "dgram"},
		[]string{"addr", "bind", "$a", "127.0.0.1:0"},
		[]string{"b", "open", "inet", "dgram"},
		[]string{"", "send", "$b", "--to", "$addr", "one"},
		[]string{"", "send", "$b", "--to", "$addr", "two"},
		[]string{"first", "recv", "$a", "--from"},
		[]string{"second", "recv", "$a"},
		[]string{"", "close", "$a", "$b"},
	)
	if err != nil {
		return err
	}
	return want("the messages", vars["first"]+" "+vars["second"], "one two")
}

// rawAllowed asks the daemon whether it may open packet sockets.
func (d *demo) rawAllowed() bool {
	out, err := d.command("open", "packet", "raw").Output()
	if err != nil {
		return false
	}
	return d.command("close", strings.TrimSpace(string(out))).Run() == nil
}

func (d *demo) frames() error {
	if !d.rawAllowed() {
		return d.leaveOut("packet sockets: they need CAP_NET_RAW, so run the demo as root")
	}
	const frame = "00000000000000000000000088b5" + "736f636b64"
	vars, err := d.script(
		[]string{"a", "open", "packet", "raw"},
		[]string{"", "bind", "$a", "lo/0x88b5"},
		[]string{"b", "open", "packet", "raw"},
		[]string{"", "bind", "$b", "lo/0x88b5"},
		[]string{"", "send", "$a", "--hex", frame},
		[]string{"got", "recv", "$b", "--hex"},
		[]string{"", "close", "$a", "$b"},
	)
	if err != nil {
		return err
	}
	return want("the frame", vars["got"], frame)
}

func (d *demo) leaveOut(what string) error {
	d.left = append(d.left, what)
	fmt.Println("  (left out: " + what + ")")
	return nil
}

// relay puts a TCP port before an HTTP server on a unix socket, fetches through
// it, and captures the fetch on the loopback interface.
func (d *demo) relay() error {
	path := filepath.Join(d.dir, "http")
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello from a unix socket, you asked for %s\n", r.URL.Path)
	})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	defer func() { _ = server.Close(); <-served }()
	fmt.Printf("  (an HTTP server listens on %s)\n", path)

	out, err := d.ctl("relay", "add", "web", "tcp:127.0.0.1:0", "unix:"+path)
	if err != nil {
		return err
	}
	addr := strings.TrimPrefix(out, "web tcp:")
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	if !d.rawAllowed() {
		if err := d.leaveOut("the capture: it needs CAP_NET_RAW, so run the demo as root"); err != nil {
			return err
		}
		return d.fetch(addr)
	}
	return d.captured(port, func() error { return d.fetch(addr) })
}

// fetch gets a page through the relay and checks it.
func (d *demo) fetch(addr string) error {
	fmt.Printf("$ curl http://%s/demo\n", addr)
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.Get("http://" + addr + "/demo")
	if err != nil {
		return err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	show(string(body))
	return want("the page", string(body), "hello from a unix socket, you asked for /demo\n")
}

// captured runs f while a capture watches its port, and shows what it saw.
func (d *demo) captured(port string, f func() error) error {
	args := []string{"capture", "lo", "-n", "tcp", "port", port}
	fmt.Printf("$ sockd-ctl %s &\n", quote(args))
	c := d.command(args...)
	var out, words bytes.Buffer
	c.Stdout, c.Stderr = &out, &words
	if err := c.Start(); err != nil {
		return err
	}
	if err := errors.Join(d.running("captures"), f(), d.seen("captures")); err != nil {
		_ = c.Process.Kill() // the first error is what matters
		_ = c.Wait()
		return err
	}
	if err := c.Process.Signal(os.Interrupt); err != nil {
		return err
	}
	err := c.Wait()
	fmt.Println("  (what the capture printed until Ctrl-C:)")
	show(out.String())
	show(words.String())
	if err == nil && !strings.Contains(out.String(), "Flags [S]") {
		err = errors.New("the capture did not see the connection begin")
	}
	return err
}

// running waits until something of a kind is listed; seen until a capture has
// delivered the end of the connection (seven frames at the least).
func (d *demo) running(kind string) error {
	return d.until(kind, "id", func(s string) bool { return strings.TrimSpace(s) != "" })
}

func (d *demo) seen(kind string) error {
	return d.until(kind, "delivered", func(s string) bool {
		var n int
		_, err := fmt.Sscan(s, &n)
		return err == nil && n >= 7
	})
}

func (d *demo) until(kind, column string, ok func(string) bool) error {
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		out, err := d.command("ls", kind, "-o", column, "--no-header").Output()
		if err != nil {
			return err
		}
		if ok(string(out)) {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("ls %s did not show what it should within %v", kind, patience)
		}
	}
}

// list leaves a socket open, so that there is something to see, and closes all.
func (d *demo) list() error {
	_, err := d.script(
		[]string{"s", "open", "inet", "stream"},
		[]string{"", "bind", "$s", "127.0.0.1:0"},
		[]string{"", "listen", "$s"},
		[]string{"", "ls"},
		[]string{"", "ls", "relays"},
		[]string{"", "ls", "sockets", "--json"},
		[]string{"", "relay", "rm", "web", "--now"},
		[]string{"", "close", "--all"},
		[]string{"", "ls"},
	)
	return err
}
