package acceptance

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/ctl/varlink"
)

// Ten thousand sockets opened, listed and closed through one connection: every
// one listed, none left, memory back.
func TestTenThousandSocketsThroughOneConnection(t *testing.T) {
	const many = 10000
	s := start(t, nil)
	ctx := context.Background()
	c, err := varlink.Dial(ctx, s.socket)
	require.NoError(t, err)
	defer c.Close()

	round := func() {
		refs := map[int]bool{}
		for range many {
			var opened struct {
				ID     int             `json:"id"`
				Socket json.RawMessage `json:"socket"`
			}
			require.NoError(t, c.Call(ctx, "io.sockd.Manager.Open", map[string]any{"family": "inet", "type": "dgram"}, &opened))
			refs[opened.ID] = true
		}
		require.Len(t, refs, many, "no ID is given twice")
		var ids []struct{ ID int }
		require.NoError(t, json.Unmarshal([]byte(s.run("ls", "--json")), &ids))
		require.Len(t, ids, many, "every one is listed")
		for _, i := range ids {
			require.True(t, refs[i.ID])
		}
		require.NoError(t, c.Call(ctx, "io.sockd.Manager.Close", map[string]any{"refs": []string{}, "all": true}, nil))
		require.Equal(t, "[]", s.run("ls", "--json"), "none is left")
	}
	require.NoError(t, c.Call(ctx, "io.sockd.Manager.List", map[string]any{"kinds": []string{"sockets"}}, nil)) // the daemon has accepted us by now
	before := s.descriptors()
	round()
	s.eventually("the descriptors are back", func() bool { return s.descriptors() <= before })
	first := s.resident()
	round()
	s.eventually("the descriptors are back", func() bool { return s.descriptors() <= before })
	// The first round pays for the heap; a leak would grow with the second.
	require.Less(t, s.resident(), first+first/2, "memory does not grow with the second round")
}
