package ctl

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/sockd/sockd/families/model"
	"github.com/stretchr/testify/require"
)

func TestAuditSaysWhatHoldsAndWhatDoesNot(t *testing.T) {
	sh, b := mustShell(t)
	good := model.Audit{Relay: 1, Name: "web", Session: 7, Direction: "rx", InBytes: 9, OutBytes: 4, InFlightBytes: 3, LostBytes: 2, Holds: true}
	b.Audited([]model.Audit{good})
	require.Equal(t, "NAME  SESSION  BRANCH  DIRECTION  IN_BYTES  OUT_BYTES  IN_FLIGHT_BYTES  LOST_BYTES  HOLDS\n"+
		"web   7        -       rx         9         4          3                2           true", sh.must("audit", "web"))
	require.JSONEq(t, `[{"relay":1,"name":"web","session":7,"direction":"rx","in_bytes":9,"out_bytes":4,"in_flight_bytes":3,"lost_bytes":2,
		"in_messages":0,"out_messages":0,"in_flight_messages":0,"lost_messages":0,"holds":true}]`, sh.must("--json", "audit"))
	require.Equal(t, 3, sh.run("", "audit", "other").exit)
	require.Equal(t, 2, sh.run("", "audit", "web", "other").exit)

	for _, tc := range []struct {
		name string
		line model.Audit
		want string
	}{
		{"bytes", model.Audit{Name: "web", Session: 7, Direction: "rx", InBytes: 9, OutBytes: 4, InFlightBytes: 3, LostBytes: 1},
			"audit web: session 7: rx: 9 bytes in, but 4 out + 3 in flight + 1 lost: +1"},
		{"messages of the past", model.Audit{Name: "web", Direction: "tx", InMessages: 1, OutMessages: 3},
			"audit web: the sessions that have ended: tx: 1 messages in, but 3 out + 0 in flight + 0 lost: -2"},
		{"a branch", model.Audit{Name: "web", Session: 7, Branch: "udp:127.0.0.1:9", Direction: "rx", OutBytes: 1},
			"audit web: session 7, branch udp:127.0.0.1:9: rx: 0 bytes in, but 1 out + 0 in flight + 0 lost: -1"},
		{"sums", model.Audit{Name: "web", Direction: "tx"}, "audit web: the sessions that have ended: tx: its counters are not those that the relay shows"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b.Audited([]model.Audit{good, tc.line, tc.line})
			got := sh.run("", "--json", "audit")
			require.Equal(t, ExitFailed, got.exit)
			var lines []model.Audit
			require.NoError(t, json.Unmarshal([]byte(got.stdout), &lines))
			require.Equal(t, []model.Audit{good, tc.line, tc.line}, lines)
			for line := range strings.Lines(got.stderr) {
				var e struct {
					Message string
					Exit    int
				}
				require.NoError(t, json.Unmarshal([]byte(line), &e))
				require.Equal(t, tc.want, e.Message)
				require.Equal(t, ExitFailed, e.Exit)
			}
			got = sh.run("", "audit")
			require.Equal(t, strings.Repeat("sockd-ctl: "+tc.want+"\n", 2), got.stderr)
		})
	}
}

// One message carries 1 MiB; a relay may have ten thousand sessions.
func TestAnAuditOfManySessionsArrives(t *testing.T) {
	sh, b := mustShell(t)
	line := model.Audit{Name: strings.Repeat("n", 64), Direction: "rx", InBytes: 1 << 50, OutBytes: 1 << 50, Holds: true}
	lines := make([]model.Audit, 10_001)
	for i := range lines {
		lines[i] = line
		lines[i].Session = model.ID(i)
	}
	b.Audited(lines)
	var got []model.Audit
	require.NoError(t, json.Unmarshal([]byte(sh.must("--json", "audit")), &got))
	require.Equal(t, lines, got)
	c, err := sh.env.Dial(t.Context())
	require.NoError(t, err)
	defer c.Close()
	require.ErrorContains(t, c.Call(t.Context(), "io.sockd.Relay.Audit", auditIn{}, &auditOut{}), "call it with more")
}
