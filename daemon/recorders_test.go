package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/pcapng"
)

// recorderOn is a recorder in memory of the loopback interface.
func recorderOn(name string) model.RecorderSpec {
	return model.RecorderSpec{Name: name, Source: "lo", Filter: "udp port 9", Last: time.Hour, Trigger: model.TriggerSpec{To: model.Place{Dir: model.NoFD}}}
}

func mustRecord(t *testing.T, d *Daemon, spec model.RecorderSpec) model.Recorder {
	t.Helper()
	v, err := d.RecorderAdd(testContext(t), me, spec)
	require.NoError(t, err)
	return v
}

// say sends a datagram that recorderOn's recorders take in.
func say(t *testing.T, text string) {
	t.Helper()
	conn, err := net.Dial("udp", "127.0.0.1:9")
	require.NoError(t, err)
	defer conn.Close()
	_, err = conn.Write([]byte(text))
	require.NoError(t, err)
}

// dumpOf has the data of all packets that a recorder has.
func dumpOf(t *testing.T, d *Daemon, ref string, spec model.DumpSpec) (said []string) {
	t.Helper()
	var file bytes.Buffer
	report, err := d.RecorderDump(testContext(t), me, ref, spec, &file)
	require.NoError(t, err)
	r := pcapng.NewReader(&file)
	var b pcapng.Block
	for {
		err := r.Next(&b)
		if errors.Is(err, io.EOF) {
			require.EqualValues(t, len(said), report.Packets)
			return said
		}
		require.NoError(t, err)
		if b.Type == pcapng.PacketBlock {
			said = append(said, string(b.Packet.Data[14+20+8:]))
		}
	}
}

func TestARecorderIsAnObjectLikeOthers(t *testing.T) {
	familytest.Need(t, familytest.Root())
	d := newDaemon(t)
	v := mustRecord(t, d, recorderOn("black"))
	require.Equal(t, "black", v.Name)
	require.Equal(t, model.RecorderRecording, v.State)
	require.Equal(t, me.Owner(), v.Owner)
	require.Equal(t, "runtime", v.SourceFile)
	require.Equal(t, map[string]string{"last": "1h"}, v.Settings)
	say(t, "marker")
	say(t, "other")
	require.Equal(t, []string{"marker", "other"}, dumpOf(t, d, "black", model.DumpSpec{}))
	require.Equal(t, []string{"marker"}, dumpOf(t, d, text(v.ID), model.DumpSpec{Filter: "greater 48"}), "by a filter that was chosen later")

	l, err := d.List(t.Context(), me, []string{"recorders"})
	require.NoError(t, err)
	require.Len(t, l.Recorders, 1)
	require.EqualValues(t, 2, l.Recorders[0].Dumps)
	o, err := d.Show(t.Context(), me, "black")
	require.NoError(t, err)
	require.Equal(t, model.KindRecorder, o.Kind)
	require.Equal(t, v.ID, o.Recorder.ID)
	status, err := d.Status(t.Context(), me)
	require.NoError(t, err)
	require.EqualValues(t, 1, status.Recorders)
}

func TestARecorderOfSomebodyElse(t *testing.T) {
	familytest.Need(t, familytest.Root())
	d := newDaemon(t)
	v := mustRecord(t, d, recorderOn("black"))
	l, err := d.List(t.Context(), stranger, nil)
	require.NoError(t, err)
	require.Empty(t, l.Recorders)
	_, err = d.Show(t.Context(), stranger, "black")
	require.ErrorIs(t, err, families.ErrNotFound)
	_, err = d.RecorderDump(t.Context(), stranger, "black", model.DumpSpec{}, new(bytes.Buffer))
	require.ErrorIs(t, err, syscall.EPERM)
	_, err = d.RecorderSet(t.Context(), stranger, text(v.ID), model.RecorderChange{Last: new(time.Minute)})
	require.ErrorIs(t, err, syscall.EPERM)
	_, err = d.RecorderRemove(t.Context(), stranger, "black")
	require.ErrorIs(t, err, syscall.EPERM)
	_, err = d.Close(t.Context(), stranger, "black", false)
	require.ErrorIs(t, err, syscall.EPERM)

	theirs, err := d.RecorderAdd(t.Context(), stranger, recorderOn("theirs"))
	require.NoError(t, err)
	l, err = d.List(t.Context(), stranger, nil)
	require.NoError(t, err)
	require.Len(t, l.Recorders, 1)
	require.Equal(t, theirs.ID, l.Recorders[0].ID)
	closed, err := d.CloseAll(t.Context(), stranger)
	require.NoError(t, err)
	require.Equal(t, []model.ID{theirs.ID}, closed)
}

func TestARecorderEndsBy(t *testing.T) {
	familytest.Need(t, familytest.Root())
	for name, end := range map[string]func(d *Daemon) error{
		"recorder rm": func(d *Daemon) error { _, err := d.RecorderRemove(context.Background(), me, "black"); return err },
		"close":       func(d *Daemon) error { _, err := d.Close(context.Background(), me, "black", false); return err },
		"close --all": func(d *Daemon) error { _, err := d.CloseAll(context.Background(), me); return err },
		"stop":        func(d *Daemon) error { return d.Stop() },
	} {
		t.Run(name, func(t *testing.T) {
			d := newDaemon(t)
			mustRecord(t, d, recorderOn("black"))
			require.NoError(t, end(d))
			require.Empty(t, d.recorders.list())
		})
	}
}

func TestRecordersAndRelaysShareTheirNames(t *testing.T) {
	familytest.Need(t, familytest.Root())
	d := newDaemon(t)
	mustRecord(t, d, recorderOn("black"))
	_, err := d.RecorderAdd(testContext(t), me, recorderOn("black"))
	require.ErrorIs(t, err, syscall.EEXIST)
	relay := model.RelaySpec{Name: "black", FromFD: model.NoFD}
	relay.From, relay.To = mustEndpoint(t, "tcp:127.0.0.1:0"), []families.Endpoint{mustEndpoint(t, "tcp:127.0.0.1:1")}
	for _, replace := range []bool{false, true} {
		_, err = d.RelayAdd(testContext(t), me, relay, replace)
		require.ErrorIs(t, err, syscall.EEXIST)
	}
	relay.Name = "web"
	_, err = d.RelayAdd(testContext(t), me, relay, false)
	require.NoError(t, err)
	_, err = d.RecorderAdd(testContext(t), me, recorderOn("web"))
	require.ErrorIs(t, err, syscall.EEXIST)

	release, err := d.naming.claim(model.KindRelay, "soon")
	require.NoError(t, err)
	_, err = d.RecorderAdd(testContext(t), me, recorderOn("soon"))
	require.ErrorIs(t, err, syscall.EEXIST, "a relay of this name is being added")
	release()
	v := mustRecord(t, d, recorderOn("soon"))
	require.Empty(t, d.naming.claims)
	unnamed := mustRecord(t, d, recorderOn(""))
	require.Equal(t, "r"+text(unnamed.ID), unnamed.Name)
	require.Greater(t, unnamed.ID, v.ID)
}

func mustEndpoint(t *testing.T, s string) families.Endpoint {
	t.Helper()
	e, err := families.ParseEndpoint(s)
	require.NoError(t, err)
	return e
}

func TestAPermanentRecorderComesBackEmpty(t *testing.T) {
	familytest.Need(t, familytest.Root())
	state := filepath.Join(t.TempDir(), "state")
	in := func(o *Options) { o.StateDir = state }
	t.Run("it is added", func(t *testing.T) {
		d := newDaemon(t, in)
		spec := recorderOn("black")
		spec.Permanent = true
		v := mustRecord(t, d, spec)
		require.Equal(t, state+"/recorders.d/black.conf", v.SourceFile)
		mustRecord(t, d, recorderOn("passing"))
		say(t, "marker")
		require.NoError(t, d.Reload(t.Context()))
		require.Equal(t, []string{"marker"}, dumpOf(t, d, "black", model.DumpSpec{}), "a reload changes nothing")
		_, err := d.RecorderSet(testContext(t), me, "black", model.RecorderChange{Last: new(time.Minute)})
		require.NoError(t, err)
	})
	t.Run("after a restart", func(t *testing.T) {
		d := newDaemon(t, in)
		require.NoError(t, d.Reload(t.Context()))
		l, err := d.List(t.Context(), me, []string{"recorders"})
		require.NoError(t, err)
		require.Len(t, l.Recorders, 1)
		require.Equal(t, time.Minute, l.Recorders[0].Last, "as it was changed")
		require.Zero(t, l.Recorders[0].HeldPackets)
		_, err = d.RecorderRemove(t.Context(), me, "black")
		require.NoError(t, err)
	})
	t.Run("after it was removed", func(t *testing.T) {
		d := newDaemon(t, in)
		require.NoError(t, d.Reload(t.Context()))
		require.Empty(t, d.recorders.list())
	})
}

func TestAReloadChangesWhatTheFilesChange(t *testing.T) {
	familytest.Need(t, familytest.Root())
	dir := t.TempDir()
	d := newDaemon(t, func(o *Options) { o.ConfigDirs = []string{dir} })
	require.NoError(t, os.Mkdir(filepath.Join(dir, "recorders.d"), 0o755))
	write := func(name, text string) {
		t.Helper()
		file := filepath.Join(dir, "recorders.d", name+".conf")
		if text == "" {
			require.NoError(t, os.Remove(file))
		} else {
			require.NoError(t, os.WriteFile(file, []byte("[Recorder]\n"+text), 0o600))
		}
		require.NoError(t, d.Reload(t.Context()))
	}
	show := func() model.Recorder {
		t.Helper()
		o, err := d.Show(t.Context(), me, "black")
		require.NoError(t, err)
		return *o.Recorder
	}
	write("black", "Source=lo\nFilter=udp port 9\nLast=1h\n")
	first := show()
	require.Equal(t, dir+"/recorders.d/black.conf", first.SourceFile)
	say(t, "marker")
	require.Equal(t, []string{"marker"}, dumpOf(t, d, "black", model.DumpSpec{}))

	write("black", "Source=lo\nFilter=udp port 9\nLast=2h\nBytes=64M\n")
	require.Equal(t, first.ID, show().ID)
	require.Equal(t, 2*time.Hour, show().Last)
	require.Equal(t, []string{"marker"}, dumpOf(t, d, "black", model.DumpSpec{}), "other bounds lose nothing")

	write("black", "Source=nonsense,,\nLast=2h\n")
	require.Equal(t, []string{"marker"}, dumpOf(t, d, "black", model.DumpSpec{}), "a broken file changes nothing")
	status, err := d.Status(t.Context(), me)
	require.NoError(t, err)
	require.Contains(t, strings.Join(status.Problems, "\n"), "black.conf:2: source")

	write("black", "Source=lo\nDirection=in\nLast=2h\n")
	require.Equal(t, first.ID, show().ID)
	require.Empty(t, dumpOf(t, d, "black", model.DumpSpec{}), "another source begins anew")
	_, err = d.CloseAll(t.Context(), me)
	require.NoError(t, err)
	show() // it is the configuration's

	write("black", "")
	require.Empty(t, d.recorders.list())
}

func TestARecorderThatCannotBeStartedIsListed(t *testing.T) {
	familytest.Need(t, familytest.Root())
	dir, to := t.TempDir(), filepath.Join(t.TempDir(), "soon")
	d := newDaemon(t, func(o *Options) { o.ConfigDirs = []string{dir} })
	for _, sub := range []string{"recorders.d", "relays.d"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, sub), 0o755))
	}
	conf := filepath.Join(dir, "recorders.d", "black.conf")
	require.NoError(t, os.WriteFile(conf, []byte("[Recorder]\nSource=lo\nFile="+to+"/x.pcapng\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "recorders.d", "web.conf"), []byte("[Recorder]\nSource=lo\nLast=1m\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "relays.d", "web.conf"), []byte("[Relay]\nFrom=tcp:127.0.0.1:0\nTo=tcp:127.0.0.1:1\n"), 0o600))
	require.Empty(t, CheckConfig(set, []string{dir}, ""), "whether a directory is there changes")
	require.NoError(t, d.Reload(t.Context()))
	status, err := d.Status(t.Context(), me)
	require.NoError(t, err)
	problems := strings.Join(status.Problems, "\n")
	require.Contains(t, problems, "no such file or directory")
	require.Contains(t, problems, "a relay has this name")
	o, err := d.Show(t.Context(), me, "black")
	require.NoError(t, err)
	require.Equal(t, model.RecorderFailed, o.Recorder.State)
	require.Contains(t, o.Recorder.Cause, "no such file or directory")
	_, err = d.RecorderDump(t.Context(), me, "black", model.DumpSpec{}, new(bytes.Buffer))
	require.ErrorIs(t, err, families.ErrNotSupported)
	o2, err := d.Show(t.Context(), me, "web")
	require.NoError(t, err)
	require.Equal(t, model.KindRelay, o2.Kind)

	require.NoError(t, os.Mkdir(to, 0o755))
	require.NoError(t, d.Reload(t.Context()))
	again, err := d.Show(t.Context(), me, "black")
	require.NoError(t, err)
	require.Equal(t, model.RecorderRecording, again.Recorder.State)
	require.Equal(t, o.Recorder.ID, again.Recorder.ID)
	require.NoError(t, os.WriteFile(conf, []byte("[Recorder]\nSource=lo\nLast=1m\nFilter=nonsense\n"), 0o600))
	mistakes := CheckConfig(set, []string{dir}, "")
	require.Len(t, mistakes, 1)
	require.Contains(t, mistakes[0].Error(), "black.conf:4: filter")
}

func TestARecorderWritesOnlyWhereItsOwnerMay(t *testing.T) {
	familytest.Need(t, familytest.Root())
	d := newDaemon(t)
	dir := t.TempDir()
	fd, err := syscall.Open(dir, syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer syscall.Close(fd)
	spec := recorderOn("black")
	spec.Trigger = model.TriggerSpec{Filter: "udp", To: model.Place{Path: dir + "/x.pcapng", Dir: fd}}
	_, err = d.RecorderAdd(testContext(t), stranger, spec)
	require.ErrorIs(t, err, syscall.EPERM, "the directory is root's")

	require.NoError(t, os.Chown(dir, int(stranger.UID), int(stranger.GID)))
	spec.Permanent = true
	_, err = d.RecorderAdd(testContext(t), stranger, spec)
	require.ErrorIs(t, err, syscall.EPERM, "kept, it would be opened by the daemon")
	spec.Permanent = false
	spec.Trigger.To.Dir = model.NoFD
	_, err = d.RecorderAdd(testContext(t), stranger, spec)
	require.ErrorIs(t, err, families.ErrBorrow)
	require.Empty(t, d.recorders.list())

	spec.Trigger.To.Dir, err = syscall.Dup(fd)
	require.NoError(t, err)
	_, err = d.RecorderAdd(testContext(t), stranger, spec)
	require.NoError(t, err)
	say(t, "marker")
	name := filepath.Join(dir, "x_00001.pcapng")
	familytest.Eventually(t, "it has dumped", func() bool { _, err := os.Stat(name); return err == nil })
	info, err := os.Stat(name)
	require.NoError(t, err)
	require.Equal(t, stranger.UID, info.Sys().(*syscall.Stat_t).Uid, "the file is its owner's")
}

func TestWatchersHearOfRecorders(t *testing.T) {
	familytest.Need(t, familytest.Root())
	d := newDaemon(t)
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(testContext(t))
	events := make(chan model.Event, 64)
	done := make(chan error, 1)
	go func() { done <- d.Watch(ctx, me, func(e model.Event) error { events <- e; return nil }) }()
	next := func(want string) model.Event {
		t.Helper()
		for {
			select {
			case e := <-events:
				if e.Event == want {
					return e
				}
			case <-time.After(patience):
				t.Fatalf("no event %s", want)
			}
		}
	}
	next("ready")
	spec := recorderOn("black")
	fd, err := syscall.Open(dir, syscall.O_DIRECTORY|syscall.O_CLOEXEC, 0)
	require.NoError(t, err)
	spec.Trigger = model.TriggerSpec{Filter: "udp", To: model.Place{Path: dir + "/x.pcapng", Dir: fd}}
	v := mustRecord(t, d, spec)
	e := next("added")
	require.Equal(t, []any{model.KindRecorder, v.ID}, []any{e.Kind, e.ID})
	say(t, "marker")
	e = next("dumped")
	require.Contains(t, e.Cause, "a packet matches udp: dumped 1 packets to "+dir+"/x_00001.pcapng")
	var object model.Recorder
	require.NoError(t, json.Unmarshal(e.Object, &object))
	require.EqualValues(t, 1, object.Dumps)
	_, err = d.RecorderRemove(t.Context(), me, "black")
	require.NoError(t, err)
	next("removed")
	cancel()
	<-done
}
