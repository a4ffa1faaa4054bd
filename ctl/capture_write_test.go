package ctl

import (
	"context"
	"encoding/json"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/ctl/ctltest"
	"github.com/sockd/sockd/families/model"
)

// countingBackend counts the captures that were started.
type countingBackend struct {
	*ctltest.Backend
	started int
}

func (b *countingBackend) Capture(ctx context.Context, c model.Caller, spec model.CaptureSpec) (Capturing, error) {
	b.started++
	return b.Backend.Capture(ctx, c, spec)
}

func (b *countingBackend) CaptureShare(ctx context.Context, c model.Caller, spec model.CaptureSpec) (Sharing, error) {
	b.started++
	return b.Backend.CaptureShare(ctx, c, spec)
}

// Once an ID was answered first, and the capture ended with what was wrong with it.
func TestAWriteThatCannotBeIsRefusedAtTheCall(t *testing.T) {
	b := &countingBackend{Backend: ctltest.New(t)}
	path, _ := mustServe(t, b)
	for name, tt := range map[string]struct{ parameters, says string }{
		"a size below 0":            {`"size":-1`, `size of files "-1"`},
		"a small size":              {`"size":4095`, `size of files "4095"`},
		"an interval below 0":       {`"every":-1000000000`, `interval of files "-1s"`},
		"a nanosecond":              {`"every":1`, `interval of files "1ns"`},
		"a second and a half":       {`"every":1500000000`, `interval of files "1.5s"`},
		"three hundred years":       {`"every":9223372036000000000`, `interval of files`},
		"files below 0":             {`"files":-1`, `number of files "-1"`},
		"files without an end":      {`"files":3`, `number of files "3"`},
		"an offset of two days":     {`"every":1000000000,"zones":[{"from":0,"offset":172800}]`, `zone "172800 from 0 on"`},
		"zones in the wrong order":  {`"every":1000000000,"zones":[{"from":9,"offset":0},{"from":9,"offset":1}]`, `zone "1 from 9 on"`},
		"a zone before all time":    {`"every":1000000000,"zones":[{"from":-9223372036854775808,"offset":0}]`, `zone`},
		"too many zones":            {`"zones":[` + strings.Repeat(`{"from":0,"offset":0},`, 64) + `{"from":0,"offset":0}]`, `zones "65"`},
		"a comment of a pcap file":  {`"format":"pcap","comment":"text"`, `comment "text"`},
		"a count below 0":           {`"count":-1`, `count "-1"`},
		"a name without sockets":    {`"netns":"blue"`, `want packet_socket and route_socket`},
		"one socket of two":         {`"packet_socket":0`, `packet_socket`},
		"sockets that did not come": {`"packet_socket":0,"route_socket":1`, `packet_socket`},
	} {
		t.Run(name, func(t *testing.T) {
			e := newShell(t, path).env
			c, err := e.Dial(t.Context())
			require.NoError(t, err)
			defer c.Close()
			err = c.More(t.Context(), writeMethod, json.RawMessage(`{"source":"eth7",`+tt.parameters+`}`), func(raw json.RawMessage) error {
				t.Errorf("it was answered with %s", raw)
				return nil
			})
			require.Equal(t, ExitUsage, ExitCode(err), "%v", err)
			require.ErrorContains(t, err, tt.says)
		})
	}
	require.Zero(t, b.started)
}

// A descriptor that no file can be written to was told only with the first packet.
func TestADescriptorThatCannotBeWrittenIsRefusedAtTheCall(t *testing.T) {
	for _, tt := range []struct {
		name string
		open func(t *testing.T, dir string) int
		says string
		exit int
	}{
		{"a pipe", func(t *testing.T, _ string) int {
			var p [2]int
			require.NoError(t, syscall.Pipe2(p[:], syscall.O_CLOEXEC))
			t.Cleanup(func() { require.NoError(t, syscall.Close(p[0])) })
			return p[1]
		}, "not a regular file", ExitSystem},
		{"a socket", func(t *testing.T, _ string) int {
			fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
			require.NoError(t, err)
			return fd
		}, "not a regular file", ExitSystem},
		{"a directory", opening(syscall.O_DIRECTORY|syscall.O_RDONLY, "."), "not a regular file", ExitSystem},
		{"a device", opening(syscall.O_WRONLY, "/dev/null"), "not a regular file", ExitSystem},
		{"a file to read", opening(syscall.O_RDONLY|syscall.O_CREAT, "file"), "not open for writing", ExitSystem},
		{"a file by its path alone", func(t *testing.T, dir string) int {
			closeFile(opening(syscall.O_WRONLY|syscall.O_CREAT, "file")(t, dir))
			return opening(0x200000, "file")(t, dir) // O_PATH
		}, "not open for writing", ExitSystem},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e, id, end := startWrite(t)
			bad := tt.open(t, t.TempDir())
			defer closeFile(bad)
			err := e.call(t.Context(), supplyMethod, supplyIn{ID: id}, nil, bad)
			require.ErrorContains(t, err, tt.says)
			require.Equal(t, tt.exit, ExitCode(err), "%v", err)
			err = e.call(t.Context(), supplyMethod, supplyIn{ID: id, Descriptor: 1}, nil, bad)
			require.Equal(t, ExitUsage, ExitCode(err), "%v", err)

			good := opening(syscall.O_WRONLY|syscall.O_CREAT, "good")(t, t.TempDir())
			defer closeFile(good)
			require.NoError(t, e.call(t.Context(), supplyMethod, supplyIn{ID: id}, nil, good))
			require.NoError(t, end(), "the capture has gone on")
		})
	}
}

// opening opens a path below the test's directory.
func opening(flags int, path string) func(*testing.T, string) int {
	return func(t *testing.T, dir string) int {
		t.Helper()
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		fd, err := syscall.Open(path, flags|syscall.O_CLOEXEC, 0o600)
		require.NoError(t, err)
		return fd
	}
}

// startWrite starts a capture to one file; end waits for its end.
func startWrite(t *testing.T) (e *Env, id model.ID, end func() error) {
	t.Helper()
	sh, _ := mustShell(t)
	e = &sh.env
	c, err := e.Dial(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() }) // it has ended
	started, ended := make(chan model.ID, 1), make(chan error, 1)
	go func() {
		ended <- c.More(t.Context(), writeMethod, writeIn{captureIn: captureIn{ShareIn: ShareIn{Source: "eth7"}}}, func(raw json.RawMessage) error {
			var out writeOut
			if err := json.Unmarshal(raw, &out); err != nil || out.Capture == nil {
				return err
			}
			select {
			case started <- out.Capture.ID:
			default: // it was the last reply
			}
			return nil
		})
	}()
	select {
	case id = <-started:
	case err = <-ended:
		require.FailNow(t, "the capture did not start", "%v", err)
	}
	return e, id, func() error { return <-ended }
}
