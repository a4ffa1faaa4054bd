package daemon

import (
	"context"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// Status is how the daemon is, and what it lacks.
func (d *Daemon) Status(ctx context.Context, c model.Caller) (model.Status, error) {
	_, end, err := d.begin(ctx)
	if err != nil {
		return model.Status{}, err
	}
	defer end()
	now := time.Now()
	s := model.Status{
		Version: d.opts.Version, PID: int64(os.Getpid()),
		Started: d.started.UTC(), Uptime: now.Sub(d.started), Generated: now.UTC(),
		Systemd: d.opts.Systemd, User: self(),
		Sockets: int64(d.table.len()), Relays: int64(len(d.relays.Relays()) + len(d.config.failed())),
		Sessions: int64(len(d.relays.Sessions())), Captures: int64(len(d.running.list())),
		Recorders: int64(len(d.recorders.list())),
		Families:  []string{}, Missing: missing(effectiveCapabilities()),
		Config: families.Escape(strings.Join(d.opts.ConfigDirs, ":")), StateDir: families.Escape(d.opts.StateDir),
		Kernel: firstLine("/proc/sys/kernel/osrelease"), Control: families.Escape(d.opts.ControlSocket),
		Problems: append(d.config.allProblems(), d.refused...), Parking: d.parkingUse(),
	}
	for _, f := range d.opts.Families {
		s.Families = append(s.Families, f.Name())
	}
	if d.opts.Callers != nil {
		s.Callers = d.opts.Callers()
	}
	return s, nil
}

// wanted are the capabilities(7) that sockd has a use for, by their bit.
var wanted = []struct {
	bit    uint
	name   string
	allows string
	spare  func() bool // the system grants the same in another way
}{
	{13, "CAP_NET_RAW", "raw and packet sockets, packet relays, captures", nil},
	{10, "CAP_NET_BIND_SERVICE", "ports below 1024", noPrivilegedPorts},
}

func missing(have uint64) []model.Missing {
	out := []model.Missing{}
	for _, w := range wanted {
		if have&(1<<w.bit) == 0 && (w.spare == nil || !w.spare()) {
			out = append(out, model.Missing{Capability: w.name, Allows: w.allows})
		}
	}
	return out
}

// noPrivilegedPorts: ip_unprivileged_port_start of 0 gives every port to
// everybody (ip-sysctl).
func noPrivilegedPorts() bool {
	return firstLine("/proc/sys/net/ipv4/ip_unprivileged_port_start") == "0"
}

// effectiveCapabilities reads CapEff (proc_pid_status(5)); where it cannot be
// read, none are assumed.
func effectiveCapabilities() uint64 {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			n, _ := strconv.ParseUint(strings.TrimSpace(hex), 16, 64) // 0 on error
			return n
		}
	}
	return 0
}

func firstLine(file string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(text), "\n")
	return line
}
