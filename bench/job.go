package main

import (
	"slices"
	"time"
)

// A kind is what a source does.
type kind string

const (
	bulk      kind = "bulk"      // one stream, as fast as it goes
	exchange  kind = "exchange"  // request and response on each of Conns connections
	reconnect kind = "reconnect" // connect, one request, close; again
	idle      kind = "idle"      // Conns connections that were used once and stay open
	datagrams kind = "datagrams" // datagrams from Clients addresses, each to be echoed
)

// The first byte of a stream tells the sink what to do with all of it.
const (
	discard = 'D' // count it, report the count at its end
	echo    = 'E' // send it back
)

// A job is what the bench asks of a source: one line of JSON on its standard input.
type job struct {
	Kind    kind          `json:"kind"`
	To      endpoint      `json:"to"`
	Conns   int           `json:"conns,omitempty"`
	Clients int           `json:"clients,omitempty"`
	Size    int           `json:"size,omitempty"`   // bytes of a request or datagram
	Window  int           `json:"window,omitempty"` // datagrams in flight, over all clients
	Burst   int           `json:"burst,omitempty"`  // datagrams of a client that leave in one (UDP_SEGMENT); 0: each on its own
	Bytes   int64         `json:"bytes,omitempty"`  // bulk ends here, or after For
	Count   int64         `json:"count,omitempty"`  // reconnect ends here, or after For
	For     time.Duration `json:"for,omitempty"`
	Frames  *frameJob     `json:"frames,omitempty"` // what only frames have
}

// An endpoint is an address of a network by Go's names: tcp, udp, unix.
type endpoint struct {
	Net  string `json:"net"`
	Addr string `json:"addr"`
}

// An outcome is what a source has to tell afterwards, on its standard output. Times
// are Unix nanoseconds.
type outcome struct {
	Start int64   `json:"start"`
	End   int64   `json:"end"`
	Ops   int64   `json:"ops"`   // requests answered, connections made, datagrams echoed
	Bytes int64   `json:"bytes"` // bulk: bytes handed to the kernel
	Lost  int64   `json:"lost"`  // datagrams that did not come back within lossTimeout
	P50   float64 `json:"p50"`   // µs
	P99   float64 `json:"p99"`   // µs
}

// arrived is what the sink reports at the end of a stream that it discarded.
type arrived struct {
	Bytes int64 `json:"bytes"`
	End   int64 `json:"end"` // when the last byte was read, Unix nanoseconds
}

// latencies collects how long each request took. Its room is bounded: beyond it a
// request still counts as done, but no longer in the quantiles.
type latencies []uint32 // ns

// 4 Mi requests are more than any row makes in its time, at 16 MiB.
func newLatencies() latencies { return make(latencies, 0, 4<<20) }

func (l *latencies) add(d time.Duration) {
	if len(*l) < cap(*l) {
		*l = append(*l, uint32(min(d, time.Duration(1<<32-1))))
	}
}

// quantile is the nearest-rank quantile in µs; l must be sorted.
func (l latencies) quantile(q float64) float64 {
	if len(l) == 0 {
		return 0
	}
	rank := min(int(q*float64(len(l))), len(l)-1)
	return float64(l[rank]) / 1e3
}

// into fills the quantiles of an outcome.
func (l latencies) into(o *outcome) {
	slices.Sort(l)
	o.P50, o.P99 = l.quantile(0.50), l.quantile(0.99)
}
