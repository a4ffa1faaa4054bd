package ctl

import (
	"strings"
	"testing"

	"github.com/sockd/sockd/families/model"
	"github.com/stretchr/testify/require"
)

// There was no verb set, though the contract promises it for every kind of REF.
func TestSetChangesARelayByIDOrName(t *testing.T) {
	sh, _ := mustShell(t)
	e := sh.env
	in := relayAddIn{From: "tcp:127.0.0.1:1", To: []string{"tcp:127.0.0.1:2"}, Name: new(string)}
	*in.Name = "web"
	var out relayOut
	require.NoError(t, e.call(t.Context(), "io.sockd.Relay.Add", in, &out))
	for _, ref := range []string{"web", idText(out.Relay.ID)} {
		sh.must("set", "--to", "tcp:127.0.0.1:3", "--max-conns", "7", ref)
		spec, err := e.specOf(t.Context(), ref)
		require.NoError(t, err)
		require.Equal(t, []string{"tcp:127.0.0.1:3"}, spec.To)
		require.EqualValues(t, 7, *spec.Settings.MaxConns)
		sh.must("set", "--max-conns", "default", "--to", "tcp:127.0.0.1:2", ref)
	}
	r := sh.run("", "set", "web")
	require.Equal(t, ExitUsage, r.exit)
	require.Equal(t, "sockd-ctl: set: nothing to change\n  sockd-ctl set --help\n", r.stderr)
	require.Equal(t, ExitUsage, sh.run("", "set", "web", "idle=5").exit)
	r = sh.run("", "set", "--idle", "1s", "nobody")
	require.Equal(t, ExitNotFound, r.exit)
	require.True(t, strings.HasPrefix(r.stderr, "sockd-ctl: set \"nobody\": "), "it said show: %s", r.stderr)
}

func TestSetSaysWhereOtherKindsAreSet(t *testing.T) {
	for _, tt := range []struct {
		name   string
		object Object
		args   []string
		says   string
		hint   string
	}{
		{"a socket", Object{Kind: model.KindSocket}, []string{"3"}, "set: 3 is a socket, whose options opt sets", "sockd-ctl opt 3 NAME=VALUE"},
		{"a socket's option", Object{Kind: model.KindSocket}, []string{"3", "so_rcvbuf=1"}, "set: 3 is a socket, whose options opt sets", "sockd-ctl opt 3 so_rcvbuf=1"},
		{"a session", Object{Kind: model.KindSession, Session: &model.Session{Relay: 9}}, []string{"4"}, "set: 4 is a session, whose settings are its relay's", "sockd-ctl set 9 --idle D"},
		{"what is not known yet", Object{Kind: "recorder"}, []string{"6"}, "set: 6 is a recorder, of which this sockd-ctl can set nothing", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := settable(tt.object, tt.args)
			require.EqualError(t, err, tt.says)
			require.Equal(t, tt.hint, hintOf(err))
			require.Equal(t, ExitUsage, ExitCode(err))
		})
	}
}
