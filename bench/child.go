package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// How long a program may take to end after SIGTERM before it gets SIGKILL.
	termPatience = 2 * time.Second
	// Of what a program says, its last bytes are kept to tell why it failed.
	wordsKept = 2 << 10
)

// A child is a program that the bench started, with whatever that program starts: it
// leads a process group of its own, and gets SIGKILL should the bench vanish. Whoever
// calls startChild calls end.
type child struct {
	cmd   *exec.Cmd
	words *tail
	stdin io.WriteCloser
	lines chan []byte   // of its standard output; closed at its end
	done  chan struct{} // closed when it has ended
	ended error         // after done
}

// startChild runs a program. Its standard output is read line by line; what it says
// on standard error is kept to explain a failure.
func startChild(name string, args ...string) (*child, error) {
	return startCommand(exec.Command(name, args...))
}

func startCommand(cmd *exec.Cmd) (*child, error) {
	c := &child{cmd: cmd, words: &tail{}, lines: make(chan []byte, 16), done: make(chan struct{})}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = c.words
	// A grandchild may hold standard error open beyond the end of the child.
	cmd.WaitDelay = termPatience
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	c.stdin = stdin
	go c.follow(stdout)
	return c, nil
}

// follow reads the child's lines and then waits for its end. A line that nobody takes
// holds the child back, never the memory.
func (c *child) follow(stdout io.Reader) {
	in := bufio.NewScanner(stdout)
	for in.Scan() {
		c.lines <- bytes.Clone(in.Bytes())
	}
	c.ended = c.cmd.Wait()
	close(c.done)
	close(c.lines)
}

// pid is the process group, too.
func (c *child) pid() int { return c.cmd.Process.Pid }

// say writes v as a line of JSON to the child's standard input.
func (c *child) say(v any) error { return json.NewEncoder(c.stdin).Encode(v) }

// hear reads a line of JSON from the child.
func (c *child) hear(ctx context.Context, v any) error {
	select {
	case line, ok := <-c.lines:
		if !ok {
			return c.why()
		}
		return json.Unmarshal(line, v)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// why says how a child ended that should not have, in its own words.
func (c *child) why() error {
	how := "exit status 0"
	if c.ended != nil {
		how = c.ended.Error()
	}
	if words := c.words.lastLine(); words != "" {
		return errors.New(words)
	}
	return errors.New(how)
}

// end ends the child and all that it started, and waits for them. Twice is nil.
func (c *child) end() error {
	_ = c.stdin.Close() // it may have closed its side already
	go func() {         // ends with follow
		for range c.lines {
		}
	}()
	select {
	case <-c.done:
	default:
		// The leader is not waited for yet, so the group is still ours.
		_ = syscall.Kill(-c.pid(), syscall.SIGTERM) // ESRCH: all gone
		c.killAfter(termPatience)
	}
	<-c.done
	return reapGroup(c.pid())
}

func (c *child) killAfter(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-c.done:
	case <-t.C:
		_ = syscall.Kill(-c.pid(), syscall.SIGKILL) // ESRCH: all gone
	}
}

// adoptOrphans makes this process the parent of descendants whose own parent ends, so
// that it can wait for them (PR_SET_CHILD_SUBREAPER of prctl(2)).
func adoptOrphans() error {
	const prSetChildSubreaper = 36
	_, _, errno := syscall.RawSyscall6(syscall.SYS_PRCTL, prSetChildSubreaper, 1, 0, 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("prctl PR_SET_CHILD_SUBREAPER: %w", errno)
	}
	return nil
}

// reapGroup kills and waits for what is left of a process group whose leader has
// ended. All of it is ours: with adoptOrphans, no process of the group can have
// another parent, and while one is left the group's number is not used again.
func reapGroup(group int) error {
	for end := time.Now().Add(termPatience); ; time.Sleep(time.Millisecond) {
		pid, err := syscall.Wait4(-group, nil, syscall.WNOHANG, nil)
		switch {
		case errors.Is(err, syscall.ECHILD):
			return nil
		case err != nil && !errors.Is(err, syscall.EINTR):
			return fmt.Errorf("wait for process group %d: %w", group, err)
		case pid > 0:
			continue
		case time.Now().After(end):
			return fmt.Errorf("process group %d does not end", group)
		}
		_ = syscall.Kill(-group, syscall.SIGKILL) // ESRCH: the next Wait4 says so
	}
}

// A tail keeps the last bytes written to it.
type tail struct {
	mu  sync.Mutex // guards buf
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if cut := len(t.buf) - wordsKept; cut > 0 {
		t.buf = append(t.buf[:0], t.buf[cut:]...)
	}
	return len(p), nil
}

// lastLine is the last line that is not empty.
func (t *tail) lastLine() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := strings.Split(strings.TrimSpace(string(t.buf)), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}
