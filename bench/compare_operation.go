package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Trials of a relay whose configuration changes while it is used.

// reloadRate is how many connections a second come meanwhile.
const reloadRate = 1000

func operationTrials(reloads int, pause time.Duration) []trial {
	return []trial{{
		name: "reload", best: keepsAll,
		title: fmt.Sprintf("another backend, %d times, under 1,000 connections a second: who is refused or reset", reloads),
		means: "every change of the configuration costs somebody a connection",
		wish:  wish{from: "tcp", to: "tcp", reloads: true},
		run: func(ctx context.Context, s *stage) (finding, error) {
			return s.reloaded(ctx, reloads, pause)
		},
	}}
}

const keepsAll = "nobody, and the open session stays"

func echoStream(c net.Conn) { _, _ = io.Copy(c, c) }

func (s *stage) reloaded(ctx context.Context, reloads int, pause time.Duration) (finding, error) {
	var backends [2]endpoint
	for i := range backends {
		at, err := s.serve(echoStream)
		if err != nil {
			return finding{}, err
		}
		backends[i] = at
	}
	l, err := s.relay(ctx, backends[0])
	if err != nil {
		return finding{}, err
	}
	session, err := s.client(l)
	if err != nil {
		return finding{}, err
	}
	if err := exchangeByte(session); err != nil {
		return finding{}, fmt.Errorf("the session before the reloads: %w", err)
	}
	crowd := s.stream(l)
	for i := range reloads {
		err = errors.Join(err, l.reload(ctx, backends[(i+1)%2]))
		time.Sleep(pause) // the connections between two reloads
	}
	asked, failed := crowd()
	return judgeReload(asked, failed, exchangeByte(session)), err
}

func judgeReload(asked, failed int64, session error) finding {
	word := "nobody"
	if failed > 0 {
		word = "some"
	}
	if session == nil {
		word += ", and the open session stays"
	} else {
		word += ", and the open session ends"
	}
	return finding{word: word, detail: fmt.Sprintf("%d of %d", failed, asked)}
}

// stream begins to connect at an even rate. What it returns ends that, waits for
// those under way and counts.
func (s *stage) stream(l *laid) (stop func() (asked, failed int64)) {
	var clients sync.WaitGroup
	var all, lost atomic.Int64
	over := make(chan struct{})
	clients.Go(func() {
		tick := time.NewTicker(time.Second / reloadRate)
		defer tick.Stop()
		for {
			select {
			case <-over:
				return
			case <-tick.C:
			}
			all.Add(1)
			clients.Go(func() {
				if s.asks(l) != nil {
					lost.Add(1)
				}
			})
		}
	})
	return func() (int64, int64) {
		close(over)
		clients.Wait()
		return all.Load(), lost.Load()
	}
}
