package familytest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/sockd/sockd/families"
	"go.uber.org/goleak"
)

// Root is nil for root, else an error for Need.
func Root() error {
	if os.Geteuid() == 0 {
		return nil
	}
	return fmt.Errorf("needs root: %w", os.ErrPermission)
}

// Need skips the test when err says that the kernel cannot (it wraps
// families.ErrNotSupported), or that this user may not (os.ErrPermission) on a
// machine where nobody promised root. Root may everything and CI promises root
// (CI=true), so there a refusal fails the test: a skip must never hide a test
// that could have run. Any other error fails it, too; nil does nothing.
func Need(tb testing.TB, err error) {
	tb.Helper()
	switch {
	case err == nil:
	case errors.Is(err, families.ErrNotSupported):
		tb.Skipf("this kernel cannot: %v", err)
	case errors.Is(err, os.ErrPermission) && os.Geteuid() != 0 && os.Getenv("CI") == "":
		tb.Skipf("%v: run as root to run this test", err)
	default:
		tb.Fatalf("this machine should have been able: %v", err)
	}
}

// Eventually waits until done says so, and fails the test with what when that
// takes longer than anything healthy does.
func Eventually(tb testing.TB, what string, done func() bool) {
	tb.Helper()
	deadline := time.Now().Add(patience)
	for !done() {
		if time.Now().After(deadline) {
			tb.Fatalf("after %v: %s", patience, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// leakPatience is for what a goroutine that was not waited for still closes: by
// the laws there is none, so it is short.
const leakPatience = 2 * time.Second

// NoLeaks checks, when the test ends, that as many descriptors are open as were
// when it was called, and that no goroutine was left. Call it first; a test that
// uses it must not be parallel.
func NoLeaks(tb testing.TB) {
	tb.Helper()
	before := descriptors(tb)
	others := goleak.IgnoreCurrent()
	tb.Cleanup(func() {
		if err := goleak.Find(others); err != nil {
			tb.Errorf("goroutines were left: %v", err)
		}
		deadline := time.Now().Add(leakPatience)
		for {
			after := descriptors(tb)
			if len(after) <= len(before) {
				return
			}
			if time.Now().After(deadline) {
				tb.Errorf("%d descriptors were left open:\n%s", len(after)-len(before), newOnes(before, after))
				return
			}
			time.Sleep(2 * time.Millisecond)
		}
	})
}

// descriptors are the open descriptors of this process and what they are, but
// for the poller's own, which the runtime opens once and keeps.
func descriptors(tb testing.TB) map[string]string {
	tb.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	open := map[string]string{}
	for _, e := range entries {
		what, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name()))
		if err != nil {
			continue // the directory's own descriptor, gone by now
		}
		if strings.HasPrefix(what, "anon_inode:[event") {
			continue
		}
		open[e.Name()] = what
	}
	return open
}

func newOnes(before, after map[string]string) string {
	var lines []string
	for fd, what := range after {
		if before[fd] != what {
			lines = append(lines, fd+" -> "+what)
		}
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}
