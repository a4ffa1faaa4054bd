package ctl

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/sockd/sockd/ctl/varlink"
	"github.com/sockd/sockd/families/model"
)

// A capture into shared memory runs like this. The packets themselves take no part in
// it: see package shm for how they are read, and package tap for who does.
//
//	program ── Share, upgrade ──────────────────> sockd
//	        <── the capture, three descriptors ──
//	the end: ── end of the sending side ─────────>   the rest, and statistics, come
//	                                                 through the memory
//	read:    ── the connection is closed ────────>   and the memory freed

// ShareMethod starts a capture into shared memory. Its parameters are a ShareIn, its reply
// a ShareOut.
const ShareMethod = "io.sockd.Capture.Share"

// ShareIn are the parameters of ShareMethod. A capture that is streamed has them, too.
type ShareIn struct {
	Source    string  `json:"source"`
	Filter    *string `json:"filter,omitempty"`
	Direction *string `json:"direction,omitempty"`
	Snaplen   *int64  `json:"snaplen,omitempty"`
	Count     *int64  `json:"count,omitempty"`
	NoPromisc *bool   `json:"no_promisc,omitempty"`
	Duration  *int64  `json:"duration,omitempty"` // nanoseconds
	Wait      *bool   `json:"wait,omitempty"`
	Queue     *int64  `json:"queue,omitempty"` // bytes of the memory
	Rings     *int64  `json:"rings,omitempty"`

	// Another network namespace: its name, and the indexes of two sockets of it.
	Netns        *string `json:"netns,omitempty"`
	PacketSocket *int    `json:"packet_socket,omitempty"`
	RouteSocket  *int    `json:"route_socket,omitempty"`
}

// ShareOut is the reply: the capture, and the indexes of the descriptors that
// shm.NewReader wants.
type ShareOut struct {
	Capture model.Capture `json:"capture"`
	Data    int           `json:"data"`
	Control int           `json:"control"`
	Wake    int           `json:"wake"`
}

var _ = addMethod(method{
	name: ShareMethod, in: ShareIn{}, out: ShareOut{}, upgrade: true,
	serve: serveShare,
})

func serveShare(ctx context.Context, s *Server, c *varlink.ServerCall) error {
	var in ShareIn
	if err := c.Decode(&in); err != nil {
		return err
	}
	r := s.request(c)
	capture, err := startCaptureOf(r, captureIn{ShareIn: in}, func(spec model.CaptureSpec) (Sharing, error) {
		return r.CaptureShare(ctx, r.caller, spec)
	})
	if err != nil {
		return err
	}
	defer capture.Close()
	data, control, wake := capture.Files()
	conn, err := c.Upgrade(ShareOut{capture.View(), 0, 1, 2}, data, control, wake)
	if err != nil {
		return err
	}
	err = runShare(ctx, capture, conn, c.Gone())
	if errors.Is(err, net.ErrClosed) {
		return nil // somebody has closed the capture: the reader sees the end, and that is no failure
	}
	return err
}

// runShare runs a capture until its end, which is also that of the caller's sending
// side, and until the caller has left.
func runShare(ctx context.Context, capture Sharing, conn *net.UnixConn, left <-chan struct{}) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		awaitEnd(conn)
	}()
	err := capture.Run(ctx, done, left)
	// It has ended by itself: wake the goroutine, which waits for the caller.
	_ = conn.SetReadDeadline(time.Unix(1, 0))
	<-done
	return err
}
