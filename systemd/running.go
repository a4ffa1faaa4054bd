package systemd

import (
	"os"
	"strconv"
)

// UnderSystemd reports whether a service manager started this process as a
// service. $SYSTEMD_EXEC_PID (since systemd 248) names the very process;
// $INVOCATION_ID would not do, every shell inside a user's session inherits
// it. $NOTIFY_SOCKET stands for a service whose main process was forked by a
// wrapper, and for managers that speak the same protocol.
func UnderSystemd() bool {
	return os.Getenv("SYSTEMD_EXEC_PID") == strconv.Itoa(os.Getpid()) || os.Getenv("NOTIFY_SOCKET") != ""
}
