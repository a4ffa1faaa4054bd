package varlink

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestClientReadsEachReply(t *testing.T) {
	mustBalance(t)
	c := startService(t, nil).mustDial(t)
	var got []string
	each := func(raw json.RawMessage, _ []int, continues bool) error {
		if continues {
			got = append(got, string(raw)+"+")
			return nil
		}
		got = append(got, string(raw))
		return nil
	}
	require.NoError(t, c.CallMore(t.Context(), "org.example.test.Count", map[string]int{"to": 3}, each))
	require.Equal(t, []string{`{"n":1}+`, `{"n":2}+`, `{"n":3}`}, got)
	require.NoError(t, c.Call(t.Context(), "org.example.test.Echo", nil, nil), "the connection must go on")
}

func TestClientThatStopsInTheMiddleCloses(t *testing.T) {
	mustBalance(t)
	c := startService(t, nil).mustDial(t)
	enough := &Error{Name: "org.example.Enough"} // even one that looks like the service's
	err := c.CallMore(t.Context(), "org.example.test.Count", map[string]int{"to": 3},
		func(json.RawMessage, []int, bool) error { return enough })
	require.ErrorIs(t, err, enough)
	require.ErrorIs(t, c.Call(t.Context(), "org.example.test.Echo", nil, nil), net.ErrClosed)
}

func TestClientError(t *testing.T) {
	c := startService(t, nil).mustDial(t)
	err := c.Call(t.Context(), "org.example.test.Fail", map[string]string{"how": "go"}, nil)
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, "org.example.test.Broken", e.Name)
	var parameters struct {
		Message string `json:"message"`
	}
	require.NoError(t, e.Decode(&parameters))
	require.Equal(t, "it broke", parameters.Message)
	require.EqualError(t, err, `org.example.test.Broken {"message":"it broke"}`)
}

func TestClientContextCancelsTheCall(t *testing.T) {
	mustBalance(t)
	s := startService(t, nil)
	c := s.mustDial(t)
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() { failed <- c.Call(ctx, "org.example.test.Wait", nil, nil) }()
	mustReceive(t, s.waiting, "the call")
	cancel()
	require.ErrorIs(t, mustReceive(t, failed, "the error"), context.Canceled)
	mustReceive(t, s.ended, "the service's end of the call")
	require.ErrorIs(t, c.Call(t.Context(), "org.example.test.Echo", nil, nil), net.ErrClosed)
	require.NoError(t, c.Close())
	require.NoError(t, c.Close())
}

func TestClientCallsTakeTurns(t *testing.T) {
	mustBalance(t)
	s := startService(t, nil)
	c := s.mustDial(t)
	first := make(chan error, 1)
	go func() { first <- c.Call(t.Context(), "org.example.test.Take", nil, nil) }()
	mustReceive(t, s.waiting, "the first call")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, c.Call(ctx, "org.example.test.Echo", nil, nil), context.Canceled, "its turn does not come")
	s.items <- 1
	require.NoError(t, mustReceive(t, first, "the first answer"), "the call that gave up must not disturb the first")
	require.NoError(t, c.Call(t.Context(), "org.example.test.Echo", nil, nil))
}

func TestClientOneway(t *testing.T) {
	s := startService(t, nil)
	c := s.mustDial(t)
	require.NoError(t, c.Oneway(t.Context(), "org.example.test.Fail", map[string]string{"how": "go"}))
	require.NoError(t, c.Call(t.Context(), "org.example.test.Echo", nil, nil))
	require.EqualValues(t, 2, s.Stats().Calls)
}

func TestClientUpgrade(t *testing.T) {
	mustBalance(t)
	s := startService(t, nil)
	c := s.mustDial(t)
	_, err := c.Upgrade(t.Context(), "org.example.test.Echo", nil, nil)
	require.ErrorContains(t, err, "InvalidParameter")
	var ready struct {
		Ready bool `json:"ready"`
	}
	uc, err := c.Upgrade(t.Context(), "org.example.test.Raw", nil, &ready)
	require.NoError(t, err, "an error leaves the connection as it was")
	require.True(t, ready.Ready)
	sent := make(chan error, 1)
	const size = 4 << 20
	go func() {
		_, err := uc.Write(make([]byte, size))
		sent <- errors.Join(err, uc.CloseWrite())
	}()
	n, err := io.Copy(io.Discard, uc)
	require.NoError(t, err)
	require.NoError(t, <-sent)
	require.EqualValues(t, size, n)
	require.NoError(t, uc.Close())
}

// A peer that breaks the rules gets no second chance.
func TestClientClosesAfterNonsense(t *testing.T) {
	for name, answer := range map[string]string{
		"no JSON":                    "hello\x00",
		"an unknown member":          `{"result":{}}` + "\x00",
		"a reply that continues":     `{"continues":true}` + "\x00",
		"an error that continues":    `{"error":"a.b.C","continues":true}` + "\x00",
		"an error that is not named": `{"error":"oops"}` + "\x00",
		"the end":                    "",
		"half a reply":               `{"para`,
	} {
		t.Run(name, func(t *testing.T) {
			mustBalance(t)
			a, b := mustPair(t)
			mustSend(t, b, answer)
			require.NoError(t, b.CloseWrite())
			c := NewClient(a)
			require.Error(t, c.Call(t.Context(), "a.b.C", nil, nil))
			require.ErrorIs(t, c.Call(t.Context(), "a.b.C", nil, nil), net.ErrClosed)
		})
	}
}

func TestClientHearsWhyItsCallWasTooLarge(t *testing.T) {
	c := startService(t, nil).mustDial(t)
	big := string(make([]byte, MaxMessage/6)) // each NUL is \u0000: the JSON text is a little too large
	require.ErrorIs(t, c.Call(t.Context(), "org.example.test.Echo", map[string]string{"text": big}, nil), ErrTooLarge)
	require.NoError(t, c.Call(t.Context(), "org.example.test.Echo", nil, nil), "nothing was sent")
}
