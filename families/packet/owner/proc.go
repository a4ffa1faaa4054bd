package owner

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/sockd/sockd/families/packet/filter"
)

// processes finds those that hold a socket, by the links in their folders fd.
type processes struct {
	root    string
	holders map[uint32][]uint32 // by inode, processes, as seen at the last look
}

// maxLinks bounds a look: so many descriptors take about a tenth of a second.
const maxLinks = 1 << 16

// holding is what is known of the processes that hold a socket: PID when there is one, Comm
// and Unit when all have the same.
func (p *processes) holding(inode uint32) filter.Owner {
	pids, ok := p.holders[inode]
	if !ok || !p.still(pids, inode) {
		p.look()
		pids = p.holders[inode]
	}
	var o filter.Owner
	for i, pid := range pids {
		one := filter.Owner{PID: pid, KnownPID: true, Comm: p.comm(pid), Unit: p.unit(pid)}
		if i == 0 {
			o = one
		} else {
			o = common(o, one)
		}
	}
	if !p.still(pids, inode) {
		return filter.Owner{} // a process ended meanwhile, and its number may be another's
	}
	return o
}

// still tells whether all of some processes hold a socket now.
func (p *processes) still(pids []uint32, inode uint32) bool {
	for _, pid := range pids {
		held := false
		p.links(pid, func(i uint32) bool {
			held = i == inode
			return !held
		})
		if !held {
			return false
		}
	}
	return true
}

// look reads who holds what.
func (p *processes) look() {
	p.holders = map[uint32][]uint32{}
	left := maxLinks
	for _, name := range list(p.root) {
		pid, err := strconv.ParseUint(name, 10, 32)
		if err != nil {
			continue
		}
		p.links(uint32(pid), func(inode uint32) bool {
			held := p.holders[inode]
			if n := len(held); n == 0 || held[n-1] != uint32(pid) {
				p.holders[inode] = append(held, uint32(pid))
			}
			left--
			return left > 0
		})
		if left <= 0 {
			p.holders = map[uint32][]uint32{} // who else holds a socket is not known
			return
		}
	}
}

// links calls f with the inodes of the sockets of a process, until f says no.
func (p *processes) links(pid uint32, f func(inode uint32) bool) {
	folder := filepath.Join(p.root, strconv.FormatUint(uint64(pid), 10), "fd")
	for _, name := range list(folder) {
		to, err := os.Readlink(filepath.Join(folder, name))
		if err != nil {
			continue
		}
		if inode, ok := socketInode(to); ok && !f(inode) {
			return
		}
	}
}

// socketInode reads "socket:[123]".
func socketInode(link string) (uint32, bool) {
	number, ok := strings.CutPrefix(link, "socket:[")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 32)
	return uint32(n), err == nil
}

// list is the names in a folder, none when it cannot be read.
func list(folder string) []string {
	d, err := os.Open(folder)
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1) // what could be read
	return names
}

func (p *processes) comm(pid uint32) string {
	return strings.TrimSuffix(p.read(pid, "comm"), "\n")
}

func (p *processes) unit(pid uint32) string { return unitOfProcess(p.read(pid, "cgroup")) }

// read is a small file of a process, empty when it cannot be read.
func (p *processes) read(pid uint32, name string) string {
	f, err := os.Open(filepath.Join(p.root, strconv.FormatUint(uint64(pid), 10), name))
	if err != nil {
		return ""
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return ""
	}
	return string(b)
}

// unitOfProcess reads /proc/PID/cgroup (cgroups(7)): the path of version 2, or of systemd's
// own hierarchy where the system has both.
func unitOfProcess(text string) string {
	unit := ""
	for line := range strings.Lines(text) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(fields) != 3 || fields[1] != "" && fields[1] != "name=systemd" {
			continue
		}
		if u := unitOfPath(fields[2]); u != "" {
			unit = u
		}
	}
	return unit
}

// unitOfPath is the innermost service or scope of a cgroup's path, as systemd names the
// folders: "/user.slice/user-7.slice/user@7.service/app.slice/web.service".
func unitOfPath(path string) string {
	unit := ""
	for part := range strings.SplitSeq(path, "/") {
		switch filepath.Ext(part) {
		case ".service", ".scope":
			unit = strings.TrimPrefix(part, "_") // systemd escapes a name that the kernel could take for a file of its own
		}
	}
	return unit
}

// cgroups finds version 2 cgroups by their ids, which are the inodes of their folders.
type cgroups struct {
	root string
	path map[uint64]string // as seen at the last look
}

// maxGroups bounds a look.
const maxGroups = 1 << 14

// unit is that of a cgroup.
func (g *cgroups) unit(id uint64) string {
	if id == 0 {
		return ""
	}
	path, ok := g.path[id]
	if !ok {
		g.look()
		path = g.path[id]
	}
	return unitOfPath(path)
}

// look reads which cgroups there are.
func (g *cgroups) look() {
	if g.root == "" {
		g.root = unifiedRoot()
	}
	g.path = map[uint64]string{}
	_ = filepath.WalkDir(g.root, func(path string, d fs.DirEntry, err error) error { // what can be read
		if err != nil || !d.IsDir() {
			return nil
		}
		if info, err := d.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				g.path[st.Ino] = strings.TrimPrefix(path, g.root)
			}
		}
		if len(g.path) >= maxGroups {
			return fs.SkipAll
		}
		return nil
	})
}

// unifiedRoot is where version 2 is mounted, alone or beside version 1.
func unifiedRoot() string {
	const alone, beside = "/sys/fs/cgroup", "/sys/fs/cgroup/unified"
	if _, err := os.Stat(beside); err == nil {
		return beside
	}
	return alone
}
