package borrow

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestFolderIsTheDirectoryOfAFile(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	require.NoError(t, os.Mkdir("sub", 0o755))
	require.NoError(t, os.WriteFile("file", nil, 0o600))
	for file, want := range map[string]struct {
		path string
		err  error
	}{
		"cap.pcapng":         {dir + "/cap.pcapng", nil},
		"./cap.pcapng":       {dir + "/cap.pcapng", nil},
		"sub/cap.pcapng":     {dir + "/sub/cap.pcapng", nil},
		"sub/../cap.pcapng":  {dir + "/sub/../cap.pcapng", nil},
		dir + "/@cap":        {dir + "/@cap", nil},
		"sub/":               {"", syscall.EISDIR},
		"sub/..":             {"", syscall.EISDIR},
		"file/cap.pcapng":    {"", syscall.ENOTDIR},
		"nowhere/cap.pcapng": {"", syscall.ENOENT},
	} {
		fd, path, err := Folder(file)
		if want.err != nil {
			require.ErrorIs(t, err, want.err, file)
			require.Equal(t, []any{-1, ""}, []any{fd, path}, file)
			continue
		}
		require.NoError(t, err, file)
		require.Equal(t, want.path, path)
		var there, here unix.Stat_t
		require.NoError(t, unix.Fstat(fd, &there))
		require.NoError(t, unix.Stat(filepath.Dir(path), &here))
		require.Equal(t, here.Ino, there.Ino, file)
		require.NoError(t, unix.Close(fd))
	}
}
