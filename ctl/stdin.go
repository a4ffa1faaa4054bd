package ctl

import (
	"context"
	"io"
	"os"
	"syscall"
)

// whileRead is ctx, which ends with the *SignalError of a SIGPIPE as its cause when
// stdout has lost its reader. A verb that prints rarely would learn of that only with
// what it prints next. stop waits for what looks.
func (e *Env) whileRead(ctx context.Context) (_ context.Context, stop func()) {
	return untilGone(ctx, e.ReaderGone)
}

// whilePipeRead is whileRead of a file; any other writer is never left.
func (e *Env) whilePipeRead(ctx context.Context, w io.Writer) (_ context.Context, stop func()) {
	f, ok := w.(*os.File)
	if !ok || e.PipeGone == nil {
		return ctx, func() {}
	}
	return untilGone(ctx, func(ctx context.Context) bool { return e.PipeGone(ctx, f) })
}

func untilGone(ctx context.Context, gone func(context.Context) bool) (_ context.Context, stop func()) {
	if gone == nil {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if gone(ctx) {
			cancel(&SignalError{syscall.SIGPIPE})
		}
	}()
	return ctx, func() {
		cancel(context.Canceled)
		<-done
	}
}

// interruptible is a reader whose reads end with ctx: nothing else takes a verb
// out of a read from a terminal. A read that was left goes on in the background,
// until its data comes or the program ends, which it does with the verb; so
// after an error the reader is of no more use.
type interruptible struct {
	ctx context.Context
	r   io.Reader
}

func (i interruptible) Read(p []byte) (int, error) {
	type result struct {
		n   int
		err error
	}
	p = p[:min(len(p), MaxInline)]
	buf := make([]byte, len(p)) // p is its owner's again when the read is left
	done := make(chan result, 1)
	go func() {
		n, err := i.r.Read(buf)
		done <- result{n, err}
	}()
	select {
	case r := <-done:
		return copy(p, buf[:r.n]), r.err
	case <-i.ctx.Done():
		return 0, context.Cause(i.ctx)
	}
}
