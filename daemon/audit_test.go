package daemon

import (
	"testing"

	"github.com/sockd/sockd/families"
	"github.com/stretchr/testify/require"
)

func TestACallerAuditsTheRelaysThatItMaySee(t *testing.T) {
	d := newDaemon(t)
	server := echo(t, "pong")
	r, err := d.RelayAdd(t.Context(), me, spec(t, "web", "tcp:127.0.0.1:0", "tcp:"+server), false)
	require.NoError(t, err)
	_, err = d.RelayAdd(t.Context(), me, spec(t, "other", "tcp:127.0.0.1:0", "tcp:"+server), false)
	require.NoError(t, err)
	dial(t, r.Local[0], "pong").says("hello")

	lines, err := d.RelayAudit(t.Context(), me, "web")
	require.NoError(t, err)
	require.Len(t, lines, 4, "the past and one session, both ways")
	for _, l := range lines {
		require.True(t, l.Holds, "%+v", l)
		require.Equal(t, r.ID, l.Relay)
		require.Equal(t, "web", l.Name)
	}
	require.Positive(t, lines[2].InBytes)
	byID, err := d.RelayAudit(t.Context(), me, text(r.ID))
	require.NoError(t, err)
	require.Equal(t, lines, byID)
	all, err := d.RelayAudit(t.Context(), me, "")
	require.NoError(t, err)
	require.Len(t, all, 6)

	none, err := d.RelayAudit(t.Context(), stranger, "")
	require.NoError(t, err)
	require.Empty(t, none)
	for _, ref := range []string{"web", text(r.ID), "nobody", "99999"} {
		_, err = d.RelayAudit(t.Context(), stranger, ref)
		require.ErrorIs(t, err, families.ErrNotFound, ref)
	}
	_, err = d.RelayAudit(t.Context(), me, "1x")
	require.ErrorIs(t, err, families.ErrSyntax)
}
