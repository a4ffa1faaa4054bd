package prove

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// loadEnv makes the test binary a load: its value names which one.
const loadEnv = "SOCKD_PROVE_LOAD"

// A way is one relay: where clients go, and where its backend listens. Both are
// NETWORK:ADDRESS as package net has them.
type way struct {
	Name     string
	From, To string
}

// order is what a load is told at its start, in one line of JSON.
type order struct {
	Ways     []way
	Bytes    int64         // streams: each direction of each way sends so many at least
	Over     time.Duration // streams: in about this time
	Sessions int           // open: how many
	Rate     int           // churn: new sessions a second
}

// streamConn is what both net.TCPConn and net.UnixConn are.
type streamConn interface {
	net.Conn
	CloseWrite() error
}

// loads are the programs, by name. Each reads commands and answers each with one line.
var loads = map[string]func(order, *console) error{
	"streams": runStreams,
	"open":    runOpen,
	"churn":   runChurn,
}

// A console is how a load hears and answers.
type console struct {
	in  *bufio.Scanner
	out *json.Encoder
}

// next is the next command. When the test has gone, so has the load.
func (c *console) next() string {
	if !c.in.Scan() {
		os.Exit(0)
	}
	return c.in.Text()
}

func (c *console) answer(v any) error { return c.out.Encode(v) }

// load runs the load of that name, and returns its exit code.
func load(name string) int {
	c := &console{in: bufio.NewScanner(os.Stdin), out: json.NewEncoder(os.Stdout)}
	var o order
	err := json.Unmarshal([]byte(c.next()), &o)
	if err == nil {
		err = loads[name](o, c)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "load %s: %v\n", name, err)
		return 1
	}
	return 0
}

// dial connects to NETWORK:ADDRESS.
func dial(at string) (streamConn, error) {
	network, address, _ := strings.Cut(at, ":")
	c, err := net.DialTimeout(network, address, patience)
	if err != nil {
		return nil, err
	}
	return c.(streamConn), nil
}

// listen listens where anybody may connect.
func listen(at string) (net.Listener, error) {
	network, address, _ := strings.Cut(at, ":")
	if network == "unix" {
		if err := os.MkdirAll(filepath.Dir(address), 0o755); err != nil {
			return nil, err
		}
		_ = os.Remove(address) // of the load before, which is gone
	}
	l, err := net.Listen(network, address)
	if err == nil && network == "unix" {
		err = os.Chmod(address, 0o666)
	}
	return l, err
}

// backends listens for every way, and serves each connection on a goroutine.
func backends(ways []way, serve func(way int, c streamConn)) (stop func(), err error) {
	var listeners []net.Listener
	var work sync.WaitGroup
	stop = func() {
		for _, l := range listeners {
			_ = l.Close() // nobody comes any more
		}
		work.Wait()
	}
	for i, w := range ways {
		l, err := listen(w.To)
		if err != nil {
			stop()
			return nil, err
		}
		listeners = append(listeners, l)
		work.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				work.Go(func() { serve(i, c.(streamConn)) })
			}
		})
	}
	return stop, nil
}

// textOf is an error for a line of JSON; an end in order is none.
func textOf(err error) string {
	if err == nil || errors.Is(err, io.EOF) {
		return ""
	}
	return err.Error()
}

// isReset tells whether the other side broke the connection.
func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
