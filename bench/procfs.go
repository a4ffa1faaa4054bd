package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// tick is one unit of CPU time in /proc: USER_HZ is 100 on every Linux.
const tick = 1.0 / 100

// boxCPU is the CPU time in seconds that this machine has spent on anything.
func boxCPU() (float64, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	return parseBoxCPU(string(b))
}

// parseBoxCPU adds up the first line of /proc/stat (proc_stat(5)): user nice system
// idle iowait irq softirq steal guest guest_nice. Idle and iowait are no work, steal
// is the hypervisor's, and guests are in user already.
func parseBoxCPU(stat string) (float64, error) {
	line, _, _ := strings.Cut(stat, "\n")
	f := strings.Fields(line)
	if len(f) < 8 || f[0] != "cpu" {
		return 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	var ticks float64
	for _, i := range []int{1, 2, 3, 6, 7} {
		n, err := strconv.ParseUint(f[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		ticks += float64(n)
	}
	return ticks * tick, nil
}

// A procStat is what the bench wants from /proc/PID/stat.
type procStat struct {
	pid, parent int
	own         float64 // CPU seconds of its own, cut to ticks
	children    float64 // CPU seconds of the children it has waited for
}

// parseProcStat reads /proc/PID/stat (proc_pid_stat(5)). The name in parentheses may
// hold anything, parentheses too.
func parseProcStat(stat string) (procStat, error) {
	open, closing := strings.IndexByte(stat, '('), strings.LastIndexByte(stat, ')')
	if open < 0 || closing < open {
		return procStat{}, fmt.Errorf("a process's stat without its name: %q", stat)
	}
	// After the name: state ppid ... utime stime cutime cstime, fields 3, 4 and 14 to 17.
	f := strings.Fields(stat[closing+1:])
	if len(f) < 15 {
		return procStat{}, fmt.Errorf("a process's stat with %d fields", len(f)+2)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(stat[:open]))
	if err != nil {
		return procStat{}, err
	}
	parent, err := strconv.Atoi(f[1])
	if err != nil {
		return procStat{}, err
	}
	s := procStat{pid: pid, parent: parent}
	for i, t := range f[11:15] {
		n, err := strconv.ParseUint(t, 10, 64)
		if err != nil {
			return procStat{}, err
		}
		if i < 2 {
			s.own += float64(n) * tick
		} else {
			s.children += float64(n) * tick
		}
	}
	return s, nil
}

// family is the process and all its descendants, in all.
func family(root int, all []procStat) []procStat {
	in := map[int]bool{root: true}
	for grown := true; grown; {
		grown = false
		for _, p := range all {
			if in[p.parent] && !in[p.pid] {
				in[p.pid], grown = true, true
			}
		}
	}
	var out []procStat
	for _, p := range all {
		if in[p.pid] {
			out = append(out, p)
		}
	}
	return out
}

// processes is every process there is. One that ends meanwhile is left out.
func processes() ([]procStat, error) {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	var all []procStat
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		p, err := parseProcStat(string(b))
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

// usage is what a process and its descendants use.
type usage struct {
	rss, pss    float64 // KiB; pss shares out what several processes map together
	descriptors int
}

// cpuOf is the CPU time in seconds of a process and its descendants, those that have
// ended and been waited for among them.
func cpuOf(pid int) (cpu float64, err error) {
	all, err := processes()
	for _, p := range family(pid, all) {
		// A relay of many processes that each ran for less than a tick would look free,
		// so the scheduler's own count is asked too. It forgets threads that have ended;
		// the tick count does not.
		cpu += max(p.own, scheduled(p.pid)) + p.children
	}
	return cpu, err
}

// scheduled is the CPU time in seconds of a process's threads, those that live. It is
// 0 for a process that has ended, or where the kernel keeps no such count.
func scheduled(pid int) (cpu float64) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid)) // the pattern is well formed
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		ns, _, _ := strings.Cut(string(b), " ")
		if n, err := strconv.ParseUint(ns, 10, 64); err == nil {
			cpu += float64(n) / 1e9
		}
	}
	return cpu
}

// holdings is the memory and descriptors of a process and its descendants.
func holdings(pid int) (u usage, err error) {
	all, err := processes()
	if err != nil {
		return usage{}, err
	}
	for _, p := range family(pid, all) {
		dir := fmt.Sprintf("/proc/%d/", p.pid)
		rss, err := fieldKiB(dir+"status", "VmRSS")
		if err != nil {
			return usage{}, err
		}
		pss, err := fieldKiB(dir+"smaps_rollup", "Pss")
		if err != nil {
			return usage{}, err
		}
		fds, err := os.ReadDir(dir + "fd")
		if err != nil {
			return usage{}, err
		}
		u.rss, u.pss, u.descriptors = u.rss+rss, u.pss+pss, u.descriptors+len(fds)
	}
	return u, nil
}

func fieldKiB(file, name string) (float64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	n, err := parseFieldKiB(string(b), name)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", file, err)
	}
	return n, nil
}

// parseFieldKiB finds a line "NAME:   123 kB".
func parseFieldKiB(text, name string) (float64, error) {
	for line := range strings.Lines(text) {
		value, ok := strings.CutPrefix(line, name+":")
		if !ok {
			continue
		}
		kib, ok := strings.CutSuffix(strings.TrimSpace(value), " kB")
		if !ok {
			return 0, fmt.Errorf("%s is not in kB: %q", name, value)
		}
		return strconv.ParseFloat(kib, 64)
	}
	return 0, fmt.Errorf("no line %s", name)
}

// loadAverage is /proc/loadavg's first three numbers, "" if it cannot be read.
func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return ""
	}
	f := strings.Fields(string(b))
	return strings.Join(f[:min(3, len(f))], " ")
}
