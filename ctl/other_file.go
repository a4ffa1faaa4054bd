package ctl

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"
)

// openOther opens what is there and no regular file, a device or a FIFO, to write alone: who
// opens a FIFO to read as well is its reader, and never learns that there is no other. A FIFO's
// reader is waited for until ctx ends.
func openOther(ctx context.Context, path string) (*os.File, error) {
	if st, err := os.Stat(path); err != nil || st.Mode()&os.ModeNamedPipe == 0 {
		return os.OpenFile(path, os.O_WRONLY, 0)
	}
	tick := time.NewTicker(readerEvery)
	defer tick.Stop()
	for {
		// open(2) that waits for the reader could not be left again.
		f, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NONBLOCK, 0)
		if !errors.Is(err, syscall.ENXIO) {
			return f, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// readerEvery is how often it is looked for a FIFO's reader: nobody sees that it is late.
const readerEvery = 20 * time.Millisecond

// isOther tells whether there is something that is no regular file.
func isOther(path string) bool {
	st, err := os.Stat(path)
	return err == nil && !st.Mode().IsRegular()
}
