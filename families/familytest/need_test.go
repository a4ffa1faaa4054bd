package familytest_test

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/stretchr/testify/require"
)

// recorder is a test that is looked at: what it says, and what it leaves to do.
type recorder struct {
	testing.TB
	said  []string
	later []func()
}

func (r *recorder) Helper()                   {}
func (r *recorder) Cleanup(f func())          { r.later = append(r.later, f) }
func (r *recorder) Skipf(f string, a ...any)  { r.said = append(r.said, "skip") }
func (r *recorder) Fatalf(f string, a ...any) { r.said = append(r.said, "fatal") }
func (r *recorder) Errorf(f string, a ...any) { r.said = append(r.said, "error") }

func (r *recorder) end() {
	for _, f := range r.later {
		f()
	}
}

func TestNeedSkipsOnlyWhatTheKernelCannot(t *testing.T) {
	familytest.Need(t, familytest.Root())
	for _, row := range []struct {
		err  error
		want []string
	}{
		{nil, nil},
		{fmt.Errorf("no rings: %w", families.ErrNotSupported), []string{"skip"}},
		{os.ErrPermission, []string{"fatal"}}, // root is refused nothing
		{errors.New("ip: not found"), []string{"fatal"}},
	} {
		r := &recorder{TB: t}
		familytest.Need(r, row.err)
		require.Equal(t, row.want, r.said, "%v", row.err)
	}
}

func TestNoLeaksSeesWhatIsLeft(t *testing.T) {
	clean := &recorder{TB: t}
	familytest.NoLeaks(clean)
	r, w, err := os.Pipe()
	require.NoError(t, err)
	require.NoError(t, r.Close())
	require.NoError(t, w.Close())
	clean.end()
	require.Empty(t, clean.said)

	files := &recorder{TB: t}
	familytest.NoLeaks(files)
	r, w, err = os.Pipe()
	require.NoError(t, err)
	files.end()
	require.Equal(t, []string{"error"}, files.said)
	require.NoError(t, r.Close())
	require.NoError(t, w.Close())

	goroutines := &recorder{TB: t}
	familytest.NoLeaks(goroutines)
	leave, left := make(chan struct{}), make(chan struct{})
	go func() { <-leave; close(left) }()
	goroutines.end()
	close(leave)
	<-left
	require.Equal(t, []string{"error"}, goroutines.said)
}
