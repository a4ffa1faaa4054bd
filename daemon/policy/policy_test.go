package policy

import (
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/families/model"
)

func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		name   string
		daemon uint32
		caller model.Caller
		denied bool
	}{
		{"root may call a root daemon", 0, model.Caller{UID: 0}, false},
		{"root may call a user's daemon", 1000, model.Caller{UID: 0}, false},
		{"a user may call the daemon that runs as that user", 1000, model.Caller{UID: 1000}, false},
		{"a user may not call a root daemon", 0, model.Caller{UID: 1000}, true},
		{"another user may not call a user's daemon", 1000, model.Caller{UID: 1001}, true},
		{"root's group alone is not root", 0, model.Caller{UID: 1000, GID: 0, Groups: []uint32{0}}, true},
		{"the pid decides nothing", 0, model.Caller{UID: 1000, PID: 1}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := For(tt.daemon).Check(tt.caller, "io.sockd.Manager.Open")
			if !tt.denied {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, syscall.EPERM)
			require.EqualError(t, err, "uid "+uidText(tt.caller.UID)+" may not call io.sockd.Manager.Open")
		})
	}
}

func TestObject(t *testing.T) {
	for _, tt := range []struct {
		name          string
		caller, owner uint32
		denied        bool
	}{
		{"an owner uses what it owns", 1000, 1000, false},
		{"root uses everybody's", 0, 1000, false},
		{"the daemon's own user uses everybody's", 999, 1000, false},
		{"a user does not use another's", 1001, 1000, true},
		{"a user does not use root's", 1001, 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			caller, owner := model.Caller{UID: tt.caller}, model.Owner{UID: tt.owner}
			err := For(999).Object(caller, owner, "socket 7")
			require.Equal(t, !tt.denied, For(999).Sees(caller, owner))
			if !tt.denied {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, syscall.EPERM)
			require.EqualError(t, err, "uid "+uidText(tt.caller)+" may not use socket 7, which is uid "+uidText(tt.owner)+"'s")
		})
	}
}

func TestNewTrustsThisProcess(t *testing.T) {
	require.NoError(t, New().Check(model.Caller{UID: uint32(os.Geteuid())}, "io.sockd.Manager.List"))
}

func uidText(uid uint32) string {
	return map[uint32]string{0: "0", 1000: "1000", 1001: "1001"}[uid]
}
