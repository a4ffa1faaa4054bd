package files

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/sockd/sockd/families/packet/pcapng"
	"github.com/stretchr/testify/require"
)

// Two who looked whether a name was free, and then took it, replaced each other's file.
func TestOfManyWhoWantANameOneHasIt(t *testing.T) {
	for name, rename := range map[string]func(from, to string) error{"in one step": RenameNew, "by a link": linkNew} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			var all sync.WaitGroup
			var have atomic.Int32
			for i := range 16 {
				from := filepath.Join(dir, fmt.Sprint(i))
				require.NoError(t, os.WriteFile(from, nil, 0o600))
				all.Go(func() {
					switch err := rename(from, filepath.Join(dir, "name")); {
					case err == nil:
						have.Add(1)
					default:
						require.ErrorIs(t, err, syscall.EEXIST)
					}
				})
			}
			all.Wait()
			require.EqualValues(t, 1, have.Load())
			left, err := os.ReadDir(dir)
			require.NoError(t, err)
			require.Len(t, left, 16, "the others have theirs")
		})
	}
}

func TestARecordersFileIsKnownByItsSignature(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	for name, text := range map[string][]byte{
		"recorder": pcapng.AppendSection(nil, pcapng.Section{Comment: Signature("black")}),
		"capture":  pcapng.AppendSection(nil, pcapng.Section{Comment: "a recording"}),
		"none":     pcapng.AppendSection(nil, pcapng.Section{}),
		"text":     []byte("recorder black"),
		"empty":    nil,
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), text, 0o600))
	}
	require.NoError(t, os.Symlink("recorder", filepath.Join(dir, "link")))
	for name, want := range map[string]bool{"recorder": true, "capture": false, "none": false, "text": false, "empty": false, "fifo": false, "link": false, ".": false, "nothing": false} {
		require.Equal(t, want, OfRecorder(filepath.Join(dir, name)), name)
	}
}

// A recorder's file without a packet yet has nothing to be known by.
func TestAFileThatARecorderWritesIsKnownBeforeItsFirstPacket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "part")
	fd, err := syscall.Open(path, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_CLOEXEC, 0o600)
	require.NoError(t, err)
	require.False(t, OfRecorder(path))
	Claim(fd)
	require.True(t, OfRecorder(path))
	_, err = syscall.Write(fd, []byte("somebody's"))
	require.NoError(t, err)
	require.False(t, OfRecorder(path), "what has packets is known by them")
	require.NoError(t, syscall.Ftruncate(fd, 0))
	require.True(t, OfRecorder(path))
	require.NoError(t, syscall.Close(fd))
	require.False(t, OfRecorder(path))
}
