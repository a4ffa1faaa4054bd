package files

import (
	"bytes"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/sockd/sockd/families/familytest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// mustAdopt opens a file and hands it over.
func mustAdopt(tb testing.TB, path string) *File {
	tb.Helper()
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	require.NoError(tb, err)
	f, err := Adopt(fd)
	require.NoError(tb, err)
	tb.Cleanup(func() {
		if f.fd >= 0 {
			require.NoError(tb, f.Close())
		}
	})
	return f
}

// aligned is memory as WriteDirect wants it.
func aligned(tb testing.TB, n int) []byte {
	tb.Helper()
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, unix.Munmap(b)) })
	return b
}

// mustTmpfs mounts a file system of so many bytes.
func mustTmpfs(tb testing.TB, size string) string {
	tb.Helper()
	familytest.Need(tb, familytest.Root())
	dir := tb.TempDir()
	require.NoError(tb, unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size))
	tb.Cleanup(func() { require.NoError(tb, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

func TestAFileIsWrittenFromItsBeginning(t *testing.T) {
	for name, dir := range map[string]string{"on a disk": t.TempDir(), "in memory": mustTmpfs(t, "1m")} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, "x")
			require.NoError(t, os.WriteFile(path, []byte("an older file"), 0o600))
			f := mustAdopt(t, path)
			_, err := unix.Seek(f.fd, 3, 0) // what the opener does meanwhile
			require.NoError(t, err)
			block := aligned(t, 2*DirectAlign)
			copy(block, "direct")
			for _, write := range []func() (int, error){
				func() (int, error) { return f.WriteDirect(block[:DirectAlign], block[DirectAlign:]) },
				func() (int, error) { return f.Write([]byte("abc")) },
				func() (int, error) { return f.Write(make([]byte, DirectAlign-3)) },
				func() (int, error) { return f.WriteDirect(block[:DirectAlign], nil) },
			} {
				_, err := write()
				require.NoError(t, err)
			}
			require.NoError(t, f.Truncate(4*DirectAlign-2))
			_, err = f.Write([]byte("end"))
			require.NoError(t, err)
			require.EqualValues(t, 4*DirectAlign+1, f.Size())
			require.NoError(t, f.Close())

			want := append(bytes.Clone(block), append([]byte("abc"), make([]byte, DirectAlign-3)...)...)
			want = append(append(want, block[:DirectAlign-2]...), "end"...)
			got, err := os.ReadFile(path)
			require.NoError(t, err)
			require.Equal(t, want, got)
		})
	}
}

func TestOnlyAFileForWritingIsTaken(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "x"), nil, 0o600))
	require.NoError(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	for name, tt := range map[string]struct {
		path  string
		flags int
		want  error
	}{
		"a fifo":            {filepath.Join(dir, "fifo"), unix.O_RDWR, syscall.EINVAL},
		"a device":          {"/dev/null", unix.O_RDWR, syscall.EINVAL},
		"a directory":       {dir, unix.O_RDONLY, syscall.EINVAL},
		"for reading":       {filepath.Join(dir, "x"), unix.O_RDONLY, syscall.EBADF},
		"a path":            {filepath.Join(dir, "x"), unix.O_PATH, syscall.EBADF},
		"for appending, ok": {filepath.Join(dir, "x"), unix.O_WRONLY | unix.O_APPEND, nil},
	} {
		t.Run(name, func(t *testing.T) {
			fd, err := unix.Open(tt.path, tt.flags|unix.O_CLOEXEC, 0)
			require.NoError(t, err)
			f, err := Adopt(fd)
			require.ErrorIs(t, err, tt.want)
			if tt.want != nil {
				require.Nil(t, f)
				Discard(fd)
				return
			}
			require.NoError(t, f.Close())
		})
	}
}

// Check says the same as Adopt, and empties nothing.
func TestSealedMemoryIsNoFile(t *testing.T) {
	for name, tt := range map[string]struct {
		seals int
		want  error
	}{
		"none":    {0, nil},
		"sealing": {unix.F_SEAL_SEAL, nil},
		"write":   {unix.F_SEAL_WRITE, syscall.EPERM},
		"future":  {unix.F_SEAL_FUTURE_WRITE, syscall.EPERM},
		"shrink":  {unix.F_SEAL_SHRINK, syscall.EPERM},
		"grow":    {unix.F_SEAL_GROW, syscall.EPERM},
	} {
		t.Run(name, func(t *testing.T) {
			fd, err := unix.MemfdCreate("sealed", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
			require.NoError(t, err)
			_, err = unix.Write(fd, []byte("before"))
			require.NoError(t, err)
			_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, tt.seals)
			require.NoError(t, err)
			require.ErrorIs(t, Check(fd), tt.want)
			var st unix.Stat_t
			require.NoError(t, unix.Fstat(fd, &st))
			require.EqualValues(t, len("before"), st.Size)
			f, err := Adopt(fd)
			require.ErrorIs(t, err, tt.want)
			if tt.want != nil {
				Discard(fd)
				return
			}
			require.NoError(t, f.Close())
		})
	}
}

func TestAFullDiskTellsHowMuchIsThere(t *testing.T) {
	dir := mustTmpfs(t, "64k")
	f := mustAdopt(t, filepath.Join(dir, "x"))
	n, err := f.Write(make([]byte, 100_000))
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.Equal(t, 64<<10, n)
	require.EqualValues(t, n, f.Size())
	require.NoError(t, f.Truncate(10))
	_, err = f.Write([]byte("x"))
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

// What is reserved is there when others have taken the rest, and given back at the end.
func TestRoomThatIsReserved(t *testing.T) {
	familytest.Need(t, familytest.Root())
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	path := filepath.Join(dir, "file")
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	require.NoError(t, err)
	f, err := Adopt(fd)
	require.NoError(t, err)
	require.NoError(t, f.Reserve(5000, 300))
	require.Zero(t, f.Size())
	_, err = f.Write(make([]byte, 5000))
	require.NoError(t, err)
	others, err := os.Create(filepath.Join(dir, "others"))
	require.NoError(t, err)
	for err == nil {
		_, err = others.Write(make([]byte, 4096))
	}
	require.NoError(t, others.Close())
	require.ErrorIs(t, f.Reserve(128<<10, 1), syscall.ENOSPC)
	_, err = f.Write(make([]byte, 300))
	require.NoError(t, err)
	require.EqualValues(t, 5300, f.Size())
	require.NoError(t, f.Close())
	var st unix.Stat_t
	require.NoError(t, unix.Stat(path, &st))
	require.Equal(t, []int64{5300, 2 * 8}, []int64{st.Size, st.Blocks}, "two pages, and nothing behind")
}
