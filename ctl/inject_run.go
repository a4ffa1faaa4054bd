package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/inject/wire"
)

// injectRun is one injection as sockd-ctl sees it.
type injectRun struct {
	e        *Env
	injected model.Injected // as it was told last
	source   *frameSource
	frames   *os.File // where the frames go
	once     bool     // they are gone through once
	buf      []byte   // records that were not written yet
	readErr  error    // what was wrong with the source
}

// run sends the frames and reads how far they are until the daemon ends it; ctx's end
// asks it to. It closes frames.
func (r *injectRun) run(ctx context.Context, conn *net.UnixConn, stopReading func()) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.CloseWrite() })
	defer stop()
	fed := make(chan struct{})
	go func() {
		defer close(fed)
		r.feed(conn)
	}()
	err := r.watch(conn)
	stopReading()
	_ = r.frames.Close() // ends a write under way; it was closed before where all went well
	<-fed
	return err
}

// feedStep is what is written at a time where frames do not come slowly.
const feedStep = 128 << 10

// feed writes all frames to the daemon, and ends the pipe behind the last one. What is
// wrong with the daemon the outcome tells.
func (r *injectRun) feed(conn *net.UnixConn) {
	err := r.source.each(r.flush, func(f wire.Record) error {
		r.buf = wire.Append(r.buf, f)
		if len(r.buf) < feedStep {
			return nil
		}
		return r.flush()
	})
	var gone *writeError
	if errors.As(err, &gone) {
		return
	}
	r.readErr = err
	if err != nil && !r.once {
		_ = conn.CloseWrite() // not to repeat the half of a file
		return
	}
	if r.flush() == nil {
		_ = r.frames.Close() // the daemon has it all
	}
}

// writeError is one of the pipe to the daemon.
type writeError struct{ error }

func (r *injectRun) flush() error {
	if len(r.buf) == 0 {
		return nil
	}
	_, err := r.frames.Write(r.buf)
	r.buf = r.buf[:0]
	if err != nil {
		return &writeError{err}
	}
	return nil
}

// watch reads what the daemon tells, until it ends the connection.
func (r *injectRun) watch(conn io.Reader) error {
	d := json.NewDecoder(conn)
	for {
		var v model.Injected
		switch err := d.Decode(&v); {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
			r.clear()
			return nil // the outcome says how it ended
		case err != nil:
			r.clear()
			return fmt.Errorf("inject %s: %w", r.injected.Interface, err)
		}
		r.injected = v
		r.progress()
	}
}

// progress is a line that the next one replaces.
func (r *injectRun) progress() {
	if r.e.StderrTerminal {
		fmt.Fprintf(r.e.Stderr, "\r%s\x1b[K", injectionLine(r.injected))
	}
}

func (r *injectRun) clear() {
	if r.e.StderrTerminal {
		fmt.Fprint(r.e.Stderr, "\r\x1b[K")
	}
}

// sumUp says what was sent, and returns what the verb ends with.
func (r *injectRun) sumUp(ctx context.Context, err error) error {
	var signal *SignalError
	interrupted := errors.As(context.Cause(ctx), &signal)
	if f := r.source.file; f != nil {
		r.addStrange(f.strange)
		if f.cut > 0 {
			r.e.say("%s cut when they were captured, and sent as short as they are", wasWere(f.cut))
		}
		if f.strange > 0 && err == nil {
			err = fmt.Errorf("inject %s: %s of another link-type than %s and not sent: %w", r.injected.Interface, wasWere(f.strange), f.link, families.ErrSyntax)
		}
	}
	if !interrupted && ctx.Err() == nil {
		err = errors.Join(err, r.readErr)
	}
	if r.e.wantsJSON() {
		err = errors.Join(r.e.printJSON(r.injected), err)
	} else {
		r.e.say("%s", injectionLine(r.injected))
	}
	if err == nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("inject %s: %w", r.injected.Interface, ctx.Err())
	}
	return err
}

func (r *injectRun) addStrange(n int64) {
	if r.injected.Failed == nil {
		r.injected.Failed = model.Drops{}
	}
	r.injected.Failed.Add("link_type", n)
}

func wasWere(n int64) string {
	if n == 1 {
		return "1 packet was"
	}
	return fmt.Sprintf("%d packets were", n)
}

// injectionLine is how far an injection is, or came.
func injectionLine(v model.Injected) string {
	took := time.Duration(v.Duration)
	line := fmt.Sprintf("%d frames (%d bytes) sent on %s in %s", v.Sent, v.Bytes, cell(v.Interface), took.Round(time.Millisecond))
	if v.Sent == 1 {
		line = strings.Replace(line, "1 frames", "1 frame", 1)
	}
	if v.Sent > 1 && took > 0 {
		line += fmt.Sprintf(", %.0f a second", float64(v.Sent)/took.Seconds())
	}
	var failed int64
	for _, n := range v.Failed {
		failed += n
	}
	if failed > 0 {
		line += fmt.Sprintf(", %d not sent", failed)
	}
	return line
}
