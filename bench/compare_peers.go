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
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A wish is what a trial wants of a relay: its two networks, and what else it has to
// be told.
type wish struct {
	from, to string        // networks
	wildcard bool          // listen on every address
	accept   bool          // the PROXY protocol, of its clients
	send     string        // the version of the PROXY protocol for the backend
	rights   bool          // pass on descriptors, if there is a word for that
	uid      string        // let in this user only
	files    int           // RLIMIT_NOFILE
	patience time.Duration // for dialling the backend
	reloads  bool          // take another configuration while it runs
	answers  bool          // carry answers to unix datagrams, too
}

// abilities are the wishes that a contestant has words for.
type abilities struct {
	direct   bool     // there is nothing to configure at all
	nets     []string // of FROM and TO
	accept   bool
	send     []string
	uid      bool
	patience bool
	reloads  bool
	answers  bool
}

// lacks says in a few words what of a wish a contestant has not, "" when it has all.
func (a abilities) lacks(w wish) string {
	switch {
	case a.direct && w.configured():
		return "nothing between"
	case !slices.Contains(a.nets, w.from):
		return "no " + w.from
	case !slices.Contains(a.nets, w.to):
		return "no " + w.to
	case w.accept && !a.accept:
		return "no PROXY protocol in"
	case w.send != "" && !slices.Contains(a.send, w.send):
		return "no PROXY " + w.send + " out"
	case w.uid != "" && !a.uid:
		return "no rule by uid"
	case w.patience != 0 && !a.patience:
		return "no connect timeout"
	case w.reloads && !a.reloads:
		return "no reload"
	case w.answers && !a.answers:
		return "one way only"
	}
	return ""
}

// configured tells whether a wish is about a relay, and not only about two ends.
func (w wish) configured() bool {
	return w.accept || w.send != "" || w.uid != "" || w.files != 0 || w.reloads
}

// A laid relay runs and listens. Its child is nil when there is nothing between.
type laid struct {
	at    endpoint
	relay *child
	// reload makes it pass on to another backend; nil where it cannot.
	reload func(ctx context.Context, to endpoint) error
}

// A contestant is a way from client to backend, as the comparison starts it.
type contestant struct {
	name    string
	can     abilities
	version string
	absent  error
	lay     layer
}

// A layer starts a relay with its files in dir, as w wishes, before a backend.
type layer func(ctx context.Context, dir string, w wish, to endpoint) (*laid, error)

func (c contestant) missing() string {
	if c.absent == nil {
		return ""
	}
	return "not here: " + c.absent.Error()
}

// everyNet is every network that a trial asks for.
var everyNet = []string{"tcp", "unix", "udp", "unixgram", "unixpacket"}

// chooseContestants looks for those whose name matches; direct is always first.
func chooseContestants(bin string, match *regexp.Regexp) []contestant {
	streams := []string{"tcp", "unix"}
	socats := abilities{nets: everyNet, patience: true}
	nginxes := abilities{nets: []string{"tcp", "unix", "udp"}, accept: true, send: []string{"v1"}, patience: true, reloads: true}
	all := []struct {
		contestant
		find func() (string, error)
	}{
		{compareSockd(bin), findSockd(bin)},
		{contestant{name: "socat", lay: compareSocat(), can: socats}, findSocat},
		{contestant{name: "socat tuned", lay: compareSocat("-t30", "-b70000"), can: socats}, findSocat},
		{contestant{name: "sd-proxyd", lay: compareProxyd, can: abilities{nets: streams}}, findProxyd},
		{contestant{name: "haproxy", lay: compareHaproxy, can: abilities{nets: streams, accept: true,
			send: []string{"v1", "v2"}, patience: true, reloads: true}}, finder("haproxy", "-v")},
		{contestant{name: "nginx", lay: compareNginx(), can: nginxes}, findNginx},
		{contestant{name: "nginx tuned", lay: compareNginx("proxy_half_close on", "proxy_buffer_size 70000"), can: nginxes}, findNginx},
	}
	out := []contestant{compareDirect()}
	for _, c := range all {
		if match.MatchString(c.name) {
			c.version, c.absent = c.find()
			out = append(out, c.contestant)
		}
	}
	return out
}

func compareDirect() contestant {
	return contestant{name: "direct", can: abilities{direct: true, nets: everyNet, patience: true, answers: true},
		lay: func(_ context.Context, _ string, _ wish, to endpoint) (*laid, error) { return &laid{at: to}, nil }}
}

// place chooses where a relay listens.
func place(dir string, w wish) (endpoint, error) {
	if strings.HasPrefix(w.from, "unix") {
		return endpoint{w.from, filepath.Join(dir, "front.sock")}, nil
	}
	at, err := front(dir, w.from)
	if err != nil || !w.wildcard {
		return at, err
	}
	_, port, err := net.SplitHostPort(at.Addr)
	return endpoint{w.from, net.JoinHostPort("0.0.0.0", port)}, err
}

// limited is a command that may open so many descriptors; 0: as many as we.
func limited(files int, name string, args ...string) *exec.Cmd {
	if files == 0 {
		return exec.Command(name, args...)
	}
	args = append([]string{"-c", `ulimit -n "$0" && exec "$@"`, strconv.Itoa(files), name}, args...)
	return exec.Command("/bin/sh", args...)
}

// layListening starts a program and waits until it listens. It does not knock, since
// a relay would pass that on to the backend.
func layListening(ctx context.Context, at endpoint, cmd *exec.Cmd) (*laid, error) {
	c, err := startCommand(cmd)
	if err != nil {
		return nil, err
	}
	if err := appears(ctx, c, at); err != nil {
		return nil, errors.Join(err, c.end())
	}
	return &laid{at: at, relay: c}, nil
}

// appears waits until the kernel lists an endpoint as bound, and listening where that
// is a thing.
func appears(ctx context.Context, c *child, at endpoint) error {
	for end := time.Now().Add(patience); ; {
		if there, err := listed(at); there || err != nil {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("does not listen on %s within %v: %s", at.Addr, patience, c.words.lastLine())
		}
		select {
		case <-c.done:
			return c.why()
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// listed looks an endpoint up in /proc/net (proc_net(5)).
func listed(at endpoint) (bool, error) {
	if strings.HasPrefix(at.Net, "unix") {
		if _, err := os.Stat(at.Addr); err != nil {
			return false, nil // not yet
		}
		text, err := os.ReadFile("/proc/net/unix")
		return listsUnix(string(text), at), err
	}
	text, err := os.ReadFile("/proc/net/" + at.Net)
	if err != nil {
		return false, err
	}
	return listsInet(string(text), at)
}

// listsUnix reads "Num RefCount Protocol Flags Type St Inode Path". haproxy binds
// PATH.PID.tmp and renames it, so a path may go on behind ours.
func listsUnix(text string, at endpoint) bool {
	const listening = "00010000"
	for l := range strings.Lines(text) {
		f := strings.Fields(l)
		if len(f) > 7 && strings.HasPrefix(f[7], at.Addr) && (f[3] == listening || at.Net == "unixgram") {
			return true
		}
	}
	return false
}

// listsInet reads "sl local_address rem_address st ...", the address in hexadecimal
// and of TCP in state listen.
func listsInet(text string, at endpoint) (bool, error) {
	const listening = "0A"
	_, port, err := net.SplitHostPort(at.Addr)
	if err != nil {
		return false, err
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return false, err
	}
	suffix := fmt.Sprintf(":%04X", n)
	for l := range strings.Lines(text) {
		f := strings.Fields(l)
		if len(f) > 3 && strings.HasSuffix(f[1], suffix) && (f[3] == listening || at.Net == "udp") {
			return true, nil
		}
	}
	return false, nil
}

///// sockd

func compareSockd(bin string) contestant {
	return contestant{name: "sockd",
		can: abilities{nets: everyNet, accept: true, send: []string{"v1", "v2"}, uid: true,
			patience: true, reloads: true, answers: true},
		lay: func(ctx context.Context, dir string, w wish, to endpoint) (*laid, error) {
			return sockdDaemon{bin: bin, dir: dir}.lay(ctx, w, to)
		}}
}

// A sockdDaemon is a daemon with nothing configured, in a folder of its own.
type sockdDaemon struct{ bin, dir string }

func (d sockdDaemon) control() string { return filepath.Join(d.dir, "control") }

func (d sockdDaemon) lay(ctx context.Context, w wish, to endpoint) (*laid, error) {
	config := filepath.Join(d.dir, "config")
	if err := os.Mkdir(config, 0o700); err != nil {
		return nil, err
	}
	at, err := place(d.dir, w)
	if err != nil {
		return nil, err
	}
	l, err := layListening(ctx, endpoint{"unix", d.control()}, limited(w.files, filepath.Join(d.bin, "sockd"),
		"--socket", d.control(), "--config", config, "--state", filepath.Join(d.dir, "state"), "--log-level", "warn"))
	if err != nil {
		return nil, err
	}
	if err := d.relay(ctx, "add", at, w, to); err != nil {
		return nil, errors.Join(err, l.relay.end())
	}
	l.at = at
	l.reload = func(ctx context.Context, to endpoint) error { return d.relay(ctx, "replace", at, w, to) }
	return l, nil
}

// relay runs `sockd-ctl relay add` or `relay replace`.
func (d sockdDaemon) relay(ctx context.Context, verb string, at endpoint, w wish, to endpoint) error {
	args := []string{"--socket", d.control(), "--timeout", patience.String(), "relay", verb, "compare"}
	cmd := exec.CommandContext(ctx, filepath.Join(d.bin, "sockd-ctl"), append(args, sockdRelay(at, w, to)...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w", strings.TrimSpace(string(out)), err)
	}
	return nil
}

// sockdRelay is FROM, TO and the flags of a wish.
func sockdRelay(at endpoint, w wish, to endpoint) []string {
	from, back := at.Net+":"+at.Addr, to.Net+":"+to.Addr
	if w.accept {
		from += ",proxy=accept"
	}
	if w.send != "" {
		back += ",proxy=" + w.send
	}
	args := []string{from, back}
	if w.rights {
		args = append(args, "--pass", "rights")
	}
	if w.uid != "" {
		args = append(args, "--allow", "uid:"+w.uid)
	}
	if w.patience != 0 {
		args = append(args, "--connect-timeout", w.patience.String())
	}
	return args
}

///// socat, systemd-socket-proxyd

func compareSocat(flags ...string) layer {
	return func(ctx context.Context, dir string, w wish, to endpoint) (*laid, error) {
		path, err := look("socat")
		if err != nil {
			return nil, err
		}
		at, err := place(dir, w)
		if err != nil {
			return nil, err
		}
		return layListening(ctx, at, limited(w.files, path, slices.Concat(flags, socatRelay(at, w, to))...))
	}
}

// socatRelay is socat's command line. Of a unix datagram socket it takes what comes,
// one way: a socket that it forks has no name to be answered at.
func socatRelay(at endpoint, w wish, to endpoint) []string {
	switch {
	case at.Net == "unixgram":
		return []string{"-u", "UNIX-RECV:" + at.Addr, "UNIX-SENDTO:" + to.Addr}
	case at.Net == "unixpacket":
		const seqpacket = ",type=5"
		return []string{"UNIX-LISTEN:" + at.Addr + ",fork" + seqpacket, "UNIX-CONNECT:" + to.Addr + seqpacket}
	case w.patience != 0:
		return []string{socatListen(at), socatConnect(to) + fmt.Sprintf(",connect-timeout=%g", w.patience.Seconds())}
	}
	return []string{socatListen(at), socatConnect(to)}
}

// compareProxyd hands it the listening socket as layProxyd does.
func compareProxyd(_ context.Context, dir string, w wish, to endpoint) (*laid, error) {
	at, err := place(dir, w)
	if err != nil {
		return nil, err
	}
	f, err := listener(at)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd := limited(w.files, "/bin/sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1; export LISTEN_PID LISTEN_FDS; exec "$0" "$@"`,
		socketProxyd, to.Addr)
	cmd.ExtraFiles = []*os.File{f}
	c, err := startCommand(cmd)
	if err != nil {
		return nil, err
	}
	return &laid{at: at, relay: c}, nil
}

///// haproxy and nginx

// signalled is a reload by a new file and a signal to the program.
func signalled(l *laid, file string, sig syscall.Signal, config func(to endpoint) string) func(context.Context, endpoint) error {
	return func(_ context.Context, to endpoint) error {
		if err := os.WriteFile(file, []byte(config(to)), 0o600); err != nil {
			return err
		}
		return syscall.Kill(l.relay.pid(), sig)
	}
}

func compareHaproxy(ctx context.Context, dir string, w wish, to endpoint) (*laid, error) {
	path, err := look("haproxy")
	if err != nil {
		return nil, err
	}
	at, err := place(dir, w)
	if err != nil {
		return nil, err
	}
	config := func(to endpoint) string { return haproxyWish(at, w, to) }
	file := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(file, []byte(config(to)), 0o600); err != nil {
		return nil, err
	}
	args := []string{"-db", "-f", file}
	if w.reloads {
		args = append(args, "-W") // a master, which hands the listeners to the next worker
	}
	l, err := layListening(ctx, at, limited(w.files, path, args...))
	if err != nil {
		return nil, err
	}
	l.reload = signalled(l, file, syscall.SIGUSR2, config)
	return l, nil
}

// haproxyWish is haproxy's own default for one stream relay. Only timeouts have none.
func haproxyWish(at endpoint, w wish, to endpoint) string {
	bind, server, connect := haproxyAddr(at), haproxyAddr(to), 10*time.Second
	if w.accept {
		bind += " accept-proxy"
	}
	switch w.send {
	case "v1":
		server += " send-proxy"
	case "v2":
		server += " send-proxy-v2"
	}
	if w.patience != 0 {
		connect = w.patience
	}
	return fmt.Sprintf("defaults\n\tmode tcp\n\ttimeout connect %dms\n\ttimeout client 10m\n\ttimeout server 10m\n"+
		"listen compare\n\tbind %s\n\tserver sink %s\n", connect.Milliseconds(), bind, server)
}

func compareNginx(settings ...string) layer {
	return func(ctx context.Context, dir string, w wish, to endpoint) (*laid, error) {
		path, module, err := nginxProgram()
		if err != nil {
			return nil, err
		}
		at, err := place(dir, w)
		if err != nil {
			return nil, err
		}
		return layNginxWish(ctx, path, dir, at, to, func(to endpoint) string {
			return nginxWish(dir, module, at, w, to, settings...)
		}, w.files)
	}
}

// nginxProgram is nginx, and the module that it has to load.
func nginxProgram() (path, module string, err error) {
	if path, err = look("nginx"); err != nil {
		return "", "", err
	}
	built, err := exec.Command(path, "-V").CombinedOutput()
	if err != nil {
		return "", "", err
	}
	module, err = streamModule(string(built))
	return path, module, err
}

func layNginxWish(ctx context.Context, path, dir string, at, to endpoint, config func(to endpoint) string, files int) (*laid, error) {
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(config(to)), 0o600); err != nil {
		return nil, err
	}
	l, err := layListening(ctx, at, limited(files, path, "-p", dir, "-e", "stderr", "-c", file))
	if err != nil {
		return nil, err
	}
	l.reload = signalled(l, file, syscall.SIGHUP, config)
	return l, nil
}

// nginxWish is nginx as its packages have it, for one relay, with what else is to be
// set for it.
func nginxWish(dir, module string, at endpoint, w wish, to endpoint, settings ...string) string {
	var b strings.Builder
	if module != "" {
		fmt.Fprintf(&b, "load_module %s;\n", module)
	}
	if os.Geteuid() == 0 {
		b.WriteString("user root;\n") // the backend's path is only for us
	}
	fmt.Fprintf(&b, "daemon off;\nworker_processes auto;\npid %s/nginx.pid;\nerror_log stderr crit;\n", dir)
	b.WriteString("events { worker_connections 1024; }\nstream {\n\tserver {\n\t\tlisten " + nginxAddr(at))
	if at.Net == "udp" {
		b.WriteString(" udp")
	}
	if w.accept {
		b.WriteString(" proxy_protocol;\n\t\tset_real_ip_from 127.0.0.0/8")
	}
	fmt.Fprintf(&b, ";\n\t\tproxy_pass %s;\n", nginxAddr(to))
	if w.send != "" {
		b.WriteString("\t\tproxy_protocol on;\n")
	}
	for _, s := range settings {
		fmt.Fprintf(&b, "\t\t%s;\n", s)
	}
	if w.patience != 0 {
		fmt.Fprintf(&b, "\t\tproxy_connect_timeout %dms;\n", w.patience.Milliseconds())
	}
	b.WriteString("\t}\n}\n")
	return b.String()
}
