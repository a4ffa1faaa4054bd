package systemd

import (
	"os"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestUnderSystemd(t *testing.T) {
	for _, tt := range []struct {
		name                        string
		execPID, notify, invocation string
		want                        bool
	}{
		{name: "a shell"},
		{name: "a shell inside somebody's user session", invocation: "5d0f", execPID: "1"},
		{name: "a service", execPID: strconv.Itoa(os.Getpid()), want: true},
		{name: "a service forked by its wrapper", execPID: "1", notify: "/run/systemd/notify", want: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("SYSTEMD_EXEC_PID", tt.execPID)
			t.Setenv("NOTIFY_SOCKET", tt.notify)
			t.Setenv("INVOCATION_ID", tt.invocation)
			require.Equal(t, tt.want, UnderSystemd())
		})
	}
}
