package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// Trials of how connections end, and of the urgent byte.

func closingTrials(late time.Duration) []trial {
	var all []trial
	for _, nets := range [][2]string{{"tcp", "tcp"}, {"tcp", "unix"}, {"unix", "tcp"}, {"unix", "unix"}} {
		all = append(all, trial{
			name:  "half-close-" + nets[0] + "-" + nets[1],
			title: "half-close, " + nets[0] + " to " + nets[1] + ": 1 MiB is answered 1.2 s after the client's FIN",
			means: "a client that ends its request with FIN, as `nc -N` or ssh does, loses the answer",
			wish:  wish{from: nets[0], to: nets[1]},
			run:   halfClose(late),
		})
	}
	return append(all,
		trial{name: "half-close-backend", title: "half-close, tcp to tcp: the client sends 1 MiB 1.2 s after the backend's FIN", wish: wish{from: "tcp", to: "tcp"},
			means: "an upload ends when the server has said all that it has to say", run: backendHalfCloses(late)},
		trial{name: "rst-server", title: "backend sends 1000 B, then RST, at once or 20 ms later, 10 times: what the client sees", wish: wish{from: "tcp", to: "tcp"},
			means: "an answer that was cut short looks complete", run: repeated(10, serverResets)},
		trial{name: "rst-client", title: "client sends 1000 B, then RST, at once or 20 ms later, 10 times: what the backend sees", wish: wish{from: "tcp", to: "tcp"},
			means: "a request that was given up looks complete, and is carried out", run: repeated(10, clientResets)},
		trial{name: "urgent", title: "a byte sent with MSG_OOB by the client, between other bytes, 3 times", wish: wish{from: "tcp", to: "tcp"},
			means: "telnet's and rlogin's interrupt does not interrupt, or a byte is missing", run: repeated(3, urgentByte)},
		trial{name: "urgent-back", title: "a byte sent with MSG_OOB by the backend, between other bytes, 3 times", wish: wish{from: "tcp", to: "tcp"},
			means: "as above", run: repeated(3, urgentAnswer)},
	)
}

func halfClose(late time.Duration) performance {
	return func(ctx context.Context, s *stage) (finding, error) {
		to, err := s.serve(func(c net.Conn) {
			if _, end := readOut(c); end != "FIN" {
				return
			}
			time.Sleep(late) // the backend at work, which is what is tried
			_, _ = c.Write(make([]byte, answerSize))
		})
		if err != nil {
			return finding{}, err
		}
		c, err := s.through(ctx, to)
		if err != nil {
			return finding{}, err
		}
		if _, err := c.Write([]byte(request)); err != nil {
			return finding{}, err
		}
		if err := closeWrite(c); err != nil {
			return finding{}, err
		}
		n, end := readOut(c)
		return finding{word: fmt.Sprintf("%d B, %s", n, end)}, nil
	}
}

// backendHalfCloses is the same the other way around.
func backendHalfCloses(late time.Duration) performance {
	return func(ctx context.Context, s *stage) (finding, error) {
		seen := make(chan string, 1)
		to, err := s.serve(func(c net.Conn) {
			if closeWrite(c) != nil {
				return
			}
			n, end := readOut(c)
			tell(seen, fmt.Sprintf("%d B, %s", n, end))
		})
		if err != nil {
			return finding{}, err
		}
		c, err := s.through(ctx, to)
		if err != nil {
			return finding{}, err
		}
		if _, end := readOut(c); end != "FIN" {
			return finding{word: "client: " + end}, nil
		}
		time.Sleep(late)                         // the client at work, which is what is tried
		_, _ = c.Write(make([]byte, answerSize)) // the backend says whether it arrives
		_ = c.Close()
		word, err := first(ctx, seen, "the backend")
		return finding{word: word}, err
	}
}

// serverResets begins with a request: a reset of a connection that the client does not
// know to be open yet would be another trial.
func serverResets(ctx context.Context, s *stage) (finding, error) {
	pause := s.resetPause()
	to, err := s.serve(func(c net.Conn) {
		_, _ = io.ReadFull(c, make([]byte, len(request)))
		_, _ = c.Write(make([]byte, lastWords))
		time.Sleep(pause)
		_ = reset(c)
	})
	if err != nil {
		return finding{}, err
	}
	return s.lastHeard(ctx, to)
}

// lastHeard asks through the contestant, and says what came and how it ended.
func (s *stage) lastHeard(ctx context.Context, to endpoint) (finding, error) {
	c, err := s.through(ctx, to)
	if err != nil {
		return finding{}, err
	}
	if _, err := c.Write([]byte(request)); err != nil {
		return finding{}, err
	}
	n, end := readOut(c)
	return finding{word: fmt.Sprintf("%d B, %s", n, end)}, nil
}

// resetPause is nothing and a while in turn: a relay may meet a reset together with
// the bytes before it, or when it has passed them on.
func (s *stage) resetPause() time.Duration {
	return time.Duration(s.attempt%2) * 20 * time.Millisecond
}

// clientResets begins with the backend's greeting, for the same reason.
func clientResets(ctx context.Context, s *stage) (finding, error) {
	seen := make(chan string, 1)
	to, err := s.serve(func(c net.Conn) {
		_, _ = c.Write([]byte("hello"))
		n, end := readOut(c)
		tell(seen, fmt.Sprintf("%d B, %s", n, end))
	})
	if err != nil {
		return finding{}, err
	}
	c, err := s.through(ctx, to)
	if err != nil {
		return finding{}, err
	}
	if _, err := io.ReadFull(c, make([]byte, len("hello"))); err != nil {
		return finding{}, fmt.Errorf("the backend's greeting: %w", err)
	}
	if _, err := c.Write(make([]byte, lastWords)); err != nil {
		return finding{}, err
	}
	time.Sleep(s.resetPause())
	if err := reset(c); err != nil {
		return finding{}, err
	}
	word, err := first(ctx, seen, "the backend")
	return finding{word: word}, err
}

// What a client says first.
const request = "request"

// The urgent byte and its neighbours.
const urgent, before, after = "!", "before", "after"

func urgentByte(ctx context.Context, s *stage) (finding, error) {
	seen := make(chan string, 1)
	to, err := s.serve(func(c net.Conn) { tell(seen, describeUrgent(c)) })
	if err != nil {
		return finding{}, err
	}
	c, err := s.through(ctx, to)
	if err != nil {
		return finding{}, err
	}
	if err := sendUrgent(c); err != nil {
		return finding{}, err
	}
	word, err := first(ctx, seen, "the backend")
	return finding{word: word}, err
}

func urgentAnswer(ctx context.Context, s *stage) (finding, error) {
	to, err := s.serve(func(c net.Conn) {
		_ = sendUrgent(c) // the client says what arrives
		_, _ = readOut(c) // it has seen all of it when it leaves
	})
	if err != nil {
		return finding{}, err
	}
	c, err := s.through(ctx, to)
	if err != nil {
		return finding{}, err
	}
	return finding{word: describeUrgent(c)}, nil
}

// sendUrgent sends the urgent byte between its neighbours, and FIN.
func sendUrgent(c net.Conn) error {
	return errors.Join(
		sendFlags(c, before, 0),
		sendFlags(c, urgent, syscall.MSG_OOB),
		sendFlags(c, after, 0),
		closeWrite(c))
}

func sendFlags(c net.Conn, text string, flags int) error {
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Write(func(fd uintptr) bool {
		sent = syscall.Sendto(int(fd), []byte(text), flags, nil)
		return !errors.Is(sent, syscall.EAGAIN)
	})
	return errors.Join(err, os.NewSyscallError("sendto", sent))
}

// describeUrgent says what a backend got. The urgent byte is asked for before the
// bytes around it are read, since reading on throws it away (tcp(7)).
func describeUrgent(c net.Conn) string {
	oob := recvUrgent(c, time.Second)
	rest, err := io.ReadAll(c)
	switch text := string(rest); {
	case oob == urgent && text == before+after:
		return "urgent, in order"
	case text == before+after:
		return "lost"
	case text == before+urgent+after:
		return "a byte like others"
	default:
		return fmt.Sprintf("%q, then %s", text, ending(err))
	}
}

// recvUrgent waits up to d for the urgent byte; "": there was none. There is no event
// to wait for that a stream without one would have, so it asks again and again.
func recvUrgent(c net.Conn, d time.Duration) string {
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return ""
	}
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		p, n := make([]byte, 1), 0
		_ = raw.Control(func(fd uintptr) { n, _, err = syscall.Recvfrom(int(fd), p, syscall.MSG_OOB) })
		if err == nil && n == 1 {
			return string(p)
		}
	}
	return ""
}
