package ctl

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"

	"github.com/sockd/sockd/ctl/varlink"
	"github.com/sockd/sockd/families"
	"github.com/stretchr/testify/require"
)

// overTheWire is an error as the client sees it that the daemon answered with.
func overTheWire(t *testing.T, err error) *RemoteError {
	t.Helper()
	e := mapError(err)
	raw, jsonErr := json.Marshal(e.Parameters)
	require.NoError(t, jsonErr)
	return remoteError("io.sockd.Manager.Test", e.Name, raw)
}

func TestErrorsCrossTheWire(t *testing.T) {
	bind := func(err error) error {
		return &families.OpError{Op: "bind", Family: "inet", Addr: "203.0.113.9:80", Err: err}
	}
	tests := []struct {
		name  string
		err   error
		wire  string
		exit  int
		errno string
		is    error // what errors.Is still finds on the other side
	}{
		{"a syntax error", &families.SyntaxError{What: "endpoint", Text: "tcp:80", Column: 5, Why: "no port"}, errInvalidArgument, 2, "", families.ErrSyntax},
		{"a usage error", &UsageError{Verb: "bind", Why: "too few arguments"}, errInvalidArgument, 2, "", families.ErrSyntax},
		{"descriptors that were refused", &varlink.FilesError{Reason: "too many"}, errInvalidArgument, 2, "", nil},
		{"a missing capability", fmt.Errorf("accept: inet dgram: %w", families.ErrNotSupported), errNotSupported, 2, "", families.ErrNotSupported},
		{"no such ID", fmt.Errorf("socket 7: %w", families.ErrNotFound), errNotFound, 3, "", families.ErrNotFound},
		{"no such device", bind(syscall.ENODEV), errNotFound, 3, "ENODEV", syscall.ENODEV},
		{"no such address", bind(syscall.ENXIO), errNotFound, 3, "ENXIO", syscall.ENXIO},
		{"a socket that was closed meanwhile", fmt.Errorf("recv inet: %w", net.ErrClosed), errNotFound, 3, "", families.ErrNotFound},
		{"EACCES", bind(syscall.EACCES), errPermissionDenied, 4, "EACCES", os.ErrPermission},
		{"EPERM", bind(syscall.EPERM), errPermissionDenied, 4, "EPERM", syscall.EPERM},
		{"a refusal without errno", fmt.Errorf("close 7: %w", os.ErrPermission), errPermissionDenied, 4, "", os.ErrPermission},
		{"the call's timeout", fmt.Errorf("recv inet: %w", context.DeadlineExceeded), errTimedOut, 6, "", context.DeadlineExceeded},
		{"the connection's timeout", bind(syscall.ETIMEDOUT), errTimedOut, 6, "ETIMEDOUT", syscall.ETIMEDOUT},
		{"EADDRINUSE", bind(syscall.EADDRINUSE), errAddressInUse, 7, "EADDRINUSE", syscall.EADDRINUSE},
		{"EEXIST", bind(syscall.EEXIST), errAddressInUse, 7, "EEXIST", syscall.EEXIST},
		{"EISCONN", bind(syscall.EISCONN), errAddressInUse, 7, "EISCONN", syscall.EISCONN},
		{"EBUSY", bind(syscall.EBUSY), errAddressInUse, 7, "EBUSY", syscall.EBUSY},
		{"a name that is taken", fmt.Errorf("relay web: the name is %w", families.ErrBusy), errAddressInUse, 7, "", families.ErrBusy},
		{"the end of a stream", fmt.Errorf("recv inet: %w", io.EOF), errEndOfStream, 9, "", io.EOF},
		{"any other errno", bind(syscall.EADDRNOTAVAIL), errSystemError, 8, "EADDRNOTAVAIL", syscall.EADDRNOTAVAIL},
		{"an errno inside of os's errors", &os.PathError{Op: "open", Path: "/x", Err: syscall.ENOENT}, errSystemError, 8, "ENOENT", syscall.ENOENT},
		{"a message that was cut", fmt.Errorf("recv: %w", families.ErrCut), errSystemError, 8, "EMSGSIZE", syscall.EMSGSIZE},
		{"a call that is the caller's", bind(families.ErrBorrow), errBorrowRequired, 1, "", families.ErrBorrow},
		{"an errno that came with a missing capability", fmt.Errorf("%w: %w", families.ErrNotSupported, syscall.EPROTONOSUPPORT), errNotSupported, 2, "EPROTONOSUPPORT", families.ErrNotSupported},
		{"anything else", errors.New("out of luck"), errFailed, 1, "", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			require.Equal(t, tt.wire, mapError(tt.err).Name)
			require.Equal(t, tt.exit, ExitCode(tt.err), "exit code on the daemon's side")
			got := overTheWire(t, tt.err)
			require.Equal(t, tt.wire, got.Name)
			require.Equal(t, tt.exit, ExitCode(got), "exit code on the client's side")
			require.Equal(t, tt.exit, ExitCode(fmt.Errorf("verb: %w", got)), "exit code when wrapped")
			require.Equal(t, tt.errno, got.Errno)
			if tt.is != nil {
				require.ErrorIs(t, got, tt.is)
			}
			require.Equal(t, tt.wire, mapError(got).Name, "a second crossing")
		})
	}
}

func TestAnErrnoIsNotTwoErrors(t *testing.T) {
	got := overTheWire(t, &families.OpError{Op: "bind", Family: "inet", Err: syscall.EADDRINUSE})
	require.NotErrorIs(t, got, families.ErrBusy)
	require.NotErrorIs(t, got, syscall.EEXIST)
	require.NotErrorIs(t, overTheWire(t, syscall.ENOENT), families.ErrCut)
}

func TestHintAndColumnCrossTheWire(t *testing.T) {
	got := overTheWire(t, fmt.Errorf("relay add: %w", &families.SyntaxError{What: "endpoint", Text: "tcp:80", Column: 5, Why: "no port", Hint: "tcp::80"}))
	require.Equal(t, "tcp::80", got.Hint)
	require.Equal(t, 5, got.Column)
	got = overTheWire(t, withHint(&families.OpError{Op: "open", Family: "packet", Err: syscall.EPERM}, "setcap cap_net_raw+ep sockd"))
	require.Equal(t, "setcap cap_net_raw+ep sockd", got.Hint)
	require.Equal(t, 0, got.Column)
}

func TestErrorsOfTheVarlinkServiceHaveExitCodes(t *testing.T) {
	tests := []struct {
		err  *varlink.Error
		exit int
		says string
	}{
		{varlink.InvalidParameter("id"), 2, `io.sockd.Manager.Bind: a parameter is missing, unknown, or of another type: "id"`},
		{varlink.MethodNotFound("io.sockd.Manager.Bind"), 2, "io.sockd.Manager.Bind: no such method"},
		{varlink.MethodNotImplemented("io.sockd.Manager.Bind"), 2, "io.sockd.Manager.Bind: the method is not implemented"},
		{varlink.InterfaceNotFound("io.sockd.Manager"), 2, `io.sockd.Manager.Bind: no such interface: "io.sockd.Manager"`},
		{varlink.ExpectedMore(), 2, "io.sockd.Manager.Bind: the method must be called with more"},
		{varlink.ExpectedUpgrade(), 2, "io.sockd.Manager.Bind: the method must be called with upgrade"},
		{varlink.PermissionDenied(), 4, "io.sockd.Manager.Bind: permission denied"},
	}
	for _, tt := range tests {
		t.Run(tt.err.Name, func(t *testing.T) {
			raw, err := json.Marshal(tt.err.Parameters)
			require.NoError(t, err)
			got := remoteError("io.sockd.Manager.Bind", tt.err.Name, raw)
			require.Equal(t, tt.exit, ExitCode(got))
			require.EqualError(t, got, tt.says)
		})
	}
}

func TestAnAnswerThatMakesNoSenseIsStillAFailure(t *testing.T) {
	for _, parameters := range []string{``, `{}`, `[]`, `{"message":7}`, `{"message":"x","exit":0}`, `{"message":"x","exit":256}`, `{"message":"x","exit":-1}`} {
		got := remoteError("io.sockd.Manager.Bind", "org.example.Odd", json.RawMessage(parameters))
		require.Equal(t, ExitFailed, ExitCode(got), "%s", parameters)
		require.NotEmpty(t, got.Error(), "%s", parameters)
	}
}

func TestPrintError(t *testing.T) {
	taken := &families.OpError{Op: "bind", Family: "inet", Addr: "203.0.113.9:80", Err: syscall.EADDRNOTAVAIL}
	tests := []struct {
		name   string
		err    error
		asJSON bool
		want   string
	}{
		{"one line with the errno", taken, false, "sockd-ctl: bind inet \"203.0.113.9:80\": cannot assign requested address (EADDRNOTAVAIL)\n"},
		{"the hint below", withHint(taken, "ip addr add 203.0.113.9 dev eth0"), false,
			"sockd-ctl: bind inet \"203.0.113.9:80\": cannot assign requested address (EADDRNOTAVAIL)\n  ip addr add 203.0.113.9 dev eth0\n"},
		{"several errors on one line", errors.Join(errors.New("one"), errors.New("two")), false, "sockd-ctl: one; two\n"},
		{"a line feed in a name is no end of an error", errors.New("open a\nb"), false, "sockd-ctl: open a\\x0ab\n"},
		{"no escape sequences in a hint", withHint(errors.New("no"), "rm a\nb"), false, "sockd-ctl: no\n  rm a\\x0ab\n"},
		{"no escape sequences for the terminal", errors.New("path \x1b[2J"), false, "sockd-ctl: path \\x1b[2J\n"},
		{"a timeout in plain words", fmt.Errorf("recv inet: %w", context.DeadlineExceeded), false, "sockd-ctl: recv inet: timed out\n"},
		{"as JSON", withHint(taken, "h<i>nt"), true,
			`{"error":"io.sockd.SystemError","message":"bind inet \"203.0.113.9:80\": cannot assign requested address","exit":8,"errno":"EADDRNOTAVAIL","hint":"h<i>nt"}` + "\n"},
		{"as JSON with a column", &families.SyntaxError{What: "endpoint", Text: "tcp", Column: 1, Why: "want NETWORK:ADDRESS"}, true,
			`{"error":"io.sockd.InvalidArgument","message":"endpoint \"tcp\": column 1: want NETWORK:ADDRESS","exit":2,"column":1}` + "\n"},
		{"nothing for nil", nil, false, ""},
		{"nothing for a signal", fmt.Errorf("recv: %w", &SignalError{syscall.SIGINT}), false, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			PrintError(&out, tt.err, tt.asJSON)
			require.Equal(t, tt.want, out.String())
		})
	}
}

func TestSignalsExitAsShellsExpect(t *testing.T) {
	require.Equal(t, 130, ExitCode(fmt.Errorf("recv: %w", &SignalError{syscall.SIGINT})))
	require.Equal(t, 143, ExitCode(&SignalError{syscall.SIGTERM}))
	require.Equal(t, 0, ExitCode(nil))
}

func TestErrnoNamesReadBack(t *testing.T) {
	for e := syscall.Errno(1); e <= maxErrno; e++ {
		name := errnoName(e)
		if name == "" {
			continue // 41 and 58 are not used
		}
		back, ok := errnoNamed(name)
		require.True(t, ok, name)
		require.Equal(t, e, back, name)
	}
	_, ok := errnoNamed("ENONSENSE")
	require.False(t, ok)
	_, ok = errnoNamed("")
	require.False(t, ok)
}
