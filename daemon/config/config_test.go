package config

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/familytest"
	"github.com/sockd/sockd/families/model"
)

// tree writes files below three directories: "1/relays.d/web.conf" is in the
// weakest. A text of "->" is a link to /dev/null.
func tree(t *testing.T, files map[string]string) (dirs []string) {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		if text == "->" {
			require.NoError(t, os.Symlink(os.DevNull, path))
			continue
		}
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	return []string{filepath.Join(root, "1"), filepath.Join(root, "2"), filepath.Join(root, "3")}
}

const web = "[Relay]\nFrom=tcp::80\nTo=tcp:a:1\n"

func TestWhichFileCounts(t *testing.T) {
	for _, tt := range []struct {
		name  string
		files map[string]string
		from  string   // of relay web; "" when there is none
		to    []string // likewise
	}{
		{"nothing is nothing", nil, "", nil},
		{"one file", map[string]string{"2/relays.d/web.conf": web}, "tcp::80", []string{"tcp:a:1"}},
		{"a later directory replaces", map[string]string{"1/relays.d/web.conf": web, "3/relays.d/web.conf": "[Relay]\nFrom=tcp::81\nTo=tcp:b:1\n"}, "tcp::81", []string{"tcp:b:1"}},
		{"a link to /dev/null masks", map[string]string{"1/relays.d/web.conf": web, "3/relays.d/web.conf": "->"}, "", nil},
		{"an earlier mask masks nothing later", map[string]string{"1/relays.d/web.conf": "->", "3/relays.d/web.conf": web}, "tcp::80", []string{"tcp:a:1"}},
		{"other names are not read", map[string]string{"1/relays.d/web.conf~": web, "1/relays.d/web": web, "1/relays.d/x.conf.d/web.conf": web}, "", nil},
		{"a drop-in changes one key", map[string]string{"1/relays.d/web.conf": web, "3/relays.d/web.conf.d/port.conf": "[Relay]\nFrom=tcp::82\n"}, "tcp::82", []string{"tcp:a:1"}},
		{"drop-ins go by name, not by directory", map[string]string{
			"1/relays.d/web.conf": web, "3/relays.d/web.conf.d/1.conf": "[Relay]\nFrom=tcp::82\n", "1/relays.d/web.conf.d/2.conf": "[Relay]\nFrom=tcp::83\n",
		}, "tcp::83", []string{"tcp:a:1"}},
		{"a drop-in replaces one of its name", map[string]string{
			"1/relays.d/web.conf": web, "1/relays.d/web.conf.d/1.conf": "[Relay]\nFrom=tcp::82\n", "2/relays.d/web.conf.d/1.conf": "[Relay]\nTo=tcp:c:1\n",
		}, "tcp::80", []string{"tcp:a:1", "tcp:c:1"}},
		{"a drop-in is masked", map[string]string{"1/relays.d/web.conf": web, "1/relays.d/web.conf.d/1.conf": "[Relay]\nFrom=tcp::82\n", "2/relays.d/web.conf.d/1.conf": "->"}, "tcp::80", []string{"tcp:a:1"}},
		{"a list appends, and an empty value resets it", map[string]string{"1/relays.d/web.conf": web + "To=tcp:b:1\nTo=\nTo=tcp:c:1\nTo=tcp:d:1\n"}, "tcp::80", []string{"tcp:c:1", "tcp:d:1"}},
		{"the last of two counts", map[string]string{"1/relays.d/web.conf": web + "From=tcp::84\n"}, "tcp::84", []string{"tcp:a:1"}},
		{"comments, empty lines, spaces", map[string]string{"1/relays.d/web.conf": "# a\n\n; b\n[Relay]\r\n  From = tcp::80  \r\nTo=tcp:a:1"}, "tcp::80", []string{"tcp:a:1"}},
		{"a section may come again", map[string]string{"1/relays.d/web.conf": web + "[Relay]\nTo=tcp:b:1\n"}, "tcp::80", []string{"tcp:a:1", "tcp:b:1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := Load(tree(t, tt.files))
			require.Empty(t, c.Problems)
			if tt.from == "" {
				require.Empty(t, c.Relays)
				return
			}
			require.Len(t, c.Relays, 1)
			spec := c.Relays[0].Spec
			require.Equal(t, "web", spec.Name)
			require.Equal(t, tt.from, spec.From.String())
			require.Equal(t, model.NoFD, spec.FromFD)
			var to []string
			for _, e := range spec.To {
				to = append(to, e.String())
			}
			require.Equal(t, tt.to, to)
		})
	}
}

func TestKeysOfARelay(t *testing.T) {
	c := Load(tree(t, map[string]string{"1/relays.d/web.conf": web + "Balance=least\nMaxConns=5\nConnectTimeout=500ms\nIdle=none\nHalfClose=1m\n"}))
	require.Empty(t, c.Problems)
	spec := c.Relays[0].Spec
	require.Equal(t, "least", spec.Balance)
	require.Equal(t, 5, spec.MaxConns)
	require.Equal(t, []time.Duration{500 * time.Millisecond, model.NoLimit, time.Minute}, []time.Duration{spec.ConnectTimeout, spec.Idle, spec.HalfClose})
	require.Equal(t, c.Relays[0].File, spec.Source)

	c = Load(tree(t, map[string]string{"1/relays.d/web.conf": web + "Balance=least\nMaxConns=5\nIdle=3\nBalance=\nMaxConns=\nIdle=\nHalfClose=none\n"}))
	require.Empty(t, c.Problems)
	spec = c.Relays[0].Spec
	require.Equal(t, []any{"", 0, time.Duration(0), time.Duration(0)}, []any{spec.Balance, spec.MaxConns, spec.Idle, spec.HalfClose})
}

func TestWhoMayComeInHowFastAndWithWhat(t *testing.T) {
	for text, want := range map[string]string{
		"Allow=10.0.0.0/8\nAllow=::1 uid:root\n":       "10.0.0.0/8 ::1 uid:0",
		"Allow=10.0.0.0/8\nAllow=\nAllow=gid:5\n":      "gid:5",
		"Allow=127.0.0.1 \\\n  127.0.0.2\n":            "127.0.0.1 127.0.0.2",
		"Allow=10.0.0.0/8\nAllow=\n":                   "",
		"Rate=1M\n":                                    "1048576",
		"Rate=1M\nRate=\n":                             "",
		"Pass=rights\n":                                "rights",
		"Pass=rights\nPass=\n":                         "",
		"Allow=uid:7\nRate=5\nPass=rights\nMaxConns=1": "uid:7 5 rights",
	} {
		c := Load(tree(t, map[string]string{"1/relays.d/web.conf": web + text}))
		require.Empty(t, c.Problems, text)
		spec := c.Relays[0].Spec
		got := model.FormatAllow(spec.Allow)
		if spec.Rate != 0 {
			got += fmt.Sprintf(" %d", spec.Rate)
		}
		require.Equal(t, want, strings.TrimSpace(got+" "+spec.Pass), text)
	}
}

func TestKeysOfTheDaemon(t *testing.T) {
	c := Load(tree(t, map[string]string{"1/sockd.conf": "[Daemon]\nLogLevel=debug\nMaxSockets=7\n", "2/sockd.conf.d/x.conf": "[Daemon]\nLogLevel=warning\n"}))
	require.Empty(t, c.Problems)
	require.Equal(t, slog.LevelWarn, *c.Daemon.LogLevel)
	require.Equal(t, 7, c.Daemon.MaxSockets)
	c = Load(tree(t, map[string]string{"1/sockd.conf": "[Daemon]\nLogLevel=debug\nMaxSockets=7\nLogLevel=\nMaxSockets=\n"}))
	require.Equal(t, Daemon{}, c.Daemon)
	c = Load(tree(t, map[string]string{"1/sockd.conf": "[Daemon]\nMaxSockets=7\n", "2/sockd.conf": "->"}))
	require.Equal(t, Daemon{}, c.Daemon)
}

func TestProblemsNameFileAndLine(t *testing.T) {
	for _, tt := range []struct{ name, file, text, want string }{
		{"an endpoint that does not parse", "relays.d/web.conf", "[Relay]\nFrom=tcp::80\nTo=nonsense\n", `relays.d/web.conf:3: endpoint "nonsense": column 1: want NETWORK:ADDRESS`},
		{"an unknown key", "relays.d/web.conf", web + "\nListen=1\n", `relays.d/web.conf:5: key "Listen"`},
		{"a durability that is none", "relays.d/web.conf", web + "Durable=perhaps\n", `relays.d/web.conf:4: durable "perhaps": want yes, no or prefer`},
		{"a rule that is none", "relays.d/web.conf", web + "Allow=10.0.0.0/8 nobody\n", `relays.d/web.conf:4: allow "nobody": want a network`},
		{"a user that is not there", "relays.d/web.conf", web + "Allow=uid:nosuchuser\n", `relays.d/web.conf:4: allow "uid:nosuchuser": there is no user "nosuchuser"`},
		{"no rate", "relays.d/web.conf", web + "Rate=0\n", `relays.d/web.conf:4: rate "0": want at least a byte a second`},
		{"a rate that is none", "relays.d/web.conf", web + "Rate=fast\n", `relays.d/web.conf:4: size "fast"`},
		{"another section", "relays.d/web.conf", web + "[Daemon]\n", `relays.d/web.conf:4: section [Daemon]: this file has [Relay] only`},
		{"no section", "relays.d/web.conf", "From=tcp::80\n", `relays.d/web.conf:1: "From=tcp::80" stands before [Relay]`},
		{"no equals sign", "relays.d/web.conf", web + "Balance\n", `relays.d/web.conf:4: "Balance": want Key=Value`},
		{"no key", "relays.d/web.conf", web + "=1\n", `relays.d/web.conf:4: "=1": want Key=Value`},
		{"a number that is none", "relays.d/web.conf", web + "MaxConns=0\n", `relays.d/web.conf:4: number "0": want a number from 1`},
		{"a duration that is none", "relays.d/web.conf", web + "Idle=soon\n", `relays.d/web.conf:4: duration "soon"`},
		{"no time to connect", "relays.d/web.conf", web + "ConnectTimeout=0\n", `relays.d/web.conf:4: duration "0": want more than 0, or none`},
		{"a relative path", "relays.d/web.conf", web + "To=unix:x.sock\n", `relays.d/web.conf:4: endpoint "unix:x.sock": column 6: a path in a file begins with /`},
		{"a line that goes on past the end", "relays.d/web.conf", web + "Balance=least\\", `relays.d/web.conf:4: the line goes on, and the file ends`},
		{"a line too long", "relays.d/web.conf", web + "Balance=" + strings.Repeat("x", 3000) + "\n", `relays.d/web.conf:4: line too long`},
		{"no From", "relays.d/web.conf", "[Relay]\nTo=tcp:a:1\n", `relays.d/web.conf: there is no From=`},
		{"no To", "relays.d/web.conf", "[Relay]\nFrom=tcp::80\nTo=tcp:a:1\nTo=\n", `relays.d/web.conf:4: there is no To=`},
		{"a name that no relay can have", "relays.d/7.conf", web, `relays.d/7.conf: name "7"`},
		{"a log level that is none", "sockd.conf", "[Daemon]\nLogLevel=loud\n", `sockd.conf:2: log level "loud"`},
		{"an unknown key of the daemon", "sockd.conf", "\n[Daemon]\nPort=1\n", `sockd.conf:3: key "Port"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dirs := tree(t, map[string]string{"2/" + tt.file: tt.text, "2/relays.d/good.conf": web})
			c := Load(dirs)
			require.Len(t, c.Problems, 1)
			got := strings.TrimPrefix(c.Problems[0].Error(), dirs[1]+"/")
			require.True(t, strings.HasPrefix(got, tt.want), "got %q; want %q", got, tt.want)
			require.Len(t, c.Relays, 1, "others are read")
			require.Equal(t, "good", c.Relays[0].Spec.Name)
			if name, ok := strings.CutPrefix(tt.file, "relays.d/"); ok {
				require.Equal(t, []string{strings.TrimSuffix(name, ".conf")}, c.Broken)
			}
		})
	}
}

func TestALineThatGoesOnIsOneLine(t *testing.T) {
	c := Load(tree(t, map[string]string{"1/relays.d/web.conf": "[Relay]\nFrom=tcp::80\nTo=\\\n  tcp:a:1\nIdle=x\n"}))
	require.Len(t, c.Problems, 1)
	require.Equal(t, 5, c.Problems[0].Line)
	c = Load(tree(t, map[string]string{"1/relays.d/web.conf": "[Relay]\nFrom=tcp::80\nTo=\\\n  tcp:a:1\n"}))
	require.Empty(t, c.Problems)
	require.Equal(t, "tcp:a:1", c.Relays[0].Spec.To[0].String())
}

func TestABrokenDropInBreaksItsRelay(t *testing.T) {
	dirs := tree(t, map[string]string{"1/relays.d/web.conf": web, "2/relays.d/web.conf.d/x.conf": "[Relay]\nIdle=x\n"})
	c := Load(dirs)
	require.Equal(t, []string{"web"}, c.Broken)
	require.Equal(t, filepath.Join(dirs[1], "relays.d/web.conf.d/x.conf"), c.Problems[0].File)
	require.Equal(t, 2, c.Problems[0].Line)
}

// Who can write a file that names a path makes the daemon open it.
func TestAPathMayStandOnlyInATrustedFile(t *testing.T) {
	const path = "[Relay]\nFrom=tcp::80\nTo=unix:/run/x\n"
	dirs := tree(t, map[string]string{"1/relays.d/web.conf": path, "1/relays.d/abstract.conf": "[Relay]\nFrom=tcp::80\nTo=unix:@x\n"})
	file := filepath.Join(dirs[0], "relays.d/web.conf")
	require.Empty(t, Load(dirs).Problems)
	require.NoError(t, os.Chmod(file, 0o666))
	c := Load(dirs)
	require.Len(t, c.Problems, 1)
	require.Equal(t, 3, c.Problems[0].Line)
	require.ErrorIs(t, c.Problems[0], os.ErrPermission)
	familytest.Need(t, familytest.Root())
	require.NoError(t, os.Chmod(file, 0o644))
	require.NoError(t, os.Chown(file, 54321, -1))
	require.Len(t, Load(dirs).Problems, 1)
}

func TestUnreadableThingsAreProblems(t *testing.T) {
	dirs := tree(t, map[string]string{"1/relays.d": "not a directory", "2/relays.d/web.conf": web})
	require.NoError(t, os.Symlink("nowhere", filepath.Join(dirs[1], "relays.d/dangling.conf")))
	c := Load(dirs)
	require.Len(t, c.Problems, 2)
	require.Contains(t, c.Problems[0].Error(), "not a directory")
	require.Contains(t, c.Problems[1].Error(), "dangling.conf: no such file")
	require.Len(t, c.Relays, 1)
}

func TestSaveAndRemove(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "there", "yet")
	spec := model.RelaySpec{Name: "web", From: families.Endpoint{Network: "tcp", Address: ":80"}, To: []families.Endpoint{{Network: "tcp", Address: "a:1"}}, HalfClose: time.Second}
	file, err := Save(dir, spec)
	require.NoError(t, err)
	info, err := os.Stat(file)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	spec.Idle = model.NoLimit
	_, err = Save(dir, spec)
	require.NoError(t, err)
	c := LoadState(dir)
	require.Empty(t, c.Problems)
	require.Len(t, c.Relays, 1)
	require.Equal(t, model.NoLimit, c.Relays[0].Spec.Idle)
	entries, err := os.ReadDir(filepath.Dir(file))
	require.NoError(t, err)
	require.Len(t, entries, 1, "nothing half written is left")
	require.NoError(t, Remove(dir, "web"))
	require.NoError(t, Remove(dir, "web"), "twice is nil")
	require.Empty(t, LoadState(dir).Relays)

	spec.Name = "../x"
	_, err = Save(dir, spec)
	require.ErrorIs(t, err, families.ErrSyntax)
	require.ErrorIs(t, Remove(dir, "../x"), families.ErrSyntax)
	spec.Name = "long"
	spec.To[0].Address = strings.Repeat("x", 4000)
	_, err = Save(dir, spec)
	require.ErrorContains(t, err, "line too long")
	_, err = Save("", spec)
	require.ErrorIs(t, err, families.ErrNotSupported)
	require.Empty(t, LoadState("").Relays)
}

func TestDefaultDirs(t *testing.T) {
	for _, tt := range []struct {
		name  string
		uid   int
		env   map[string]string
		dirs  []string
		state string
	}{
		{"root has the system's", 0, nil, []string{"/usr/lib/sockd", "/run/sockd", "/etc/sockd"}, "/var/lib/sockd"},
		{"the service of the system, too", 990, map[string]string{"CONFIGURATION_DIRECTORY": "/etc/sockd", "STATE_DIRECTORY": "/var/lib/sockd"}, []string{"/usr/lib/sockd", "/run/sockd", "/etc/sockd"}, "/var/lib/sockd"},
		{"a user's service has its own", 1000, map[string]string{"CONFIGURATION_DIRECTORY": "/h/.config/sockd"}, []string{"/h/.config/sockd"}, ""},
		{"a user has XDG's", 1000, map[string]string{"XDG_CONFIG_HOME": "/x", "XDG_STATE_HOME": "/y", "HOME": "/h"}, []string{"/x/sockd"}, "/y/sockd"},
		{"a user has a home", 1000, map[string]string{"HOME": "/h"}, []string{"/h/.config/sockd"}, "/h/.local/state/sockd"},
		{"nobody has none", 65534, map[string]string{"XDG_CONFIG_HOME": "relative"}, nil, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			getenv := func(name string) string { return tt.env[name] }
			require.Equal(t, tt.dirs, DefaultDirs(tt.uid, getenv))
			require.Equal(t, tt.state, DefaultState(tt.uid, getenv))
		})
	}
}

// What is written reads back the same, and what reads has no problems left.
func FuzzRelayFile(f *testing.F) {
	for _, s := range []string{
		web, web + "Balance=least\nMaxConns=5\nConnectTimeout=500ms\nIdle=none\nHalfClose=1m\n",
		web + "Balance=fanout\nAllow=10.0.0.0/8 ::ffff:1.2.3.4 uid:0\nAllow=gid:root\nRate=1.5M\nPass=rights\n",
		"[Relay]\nFrom=unix:@a\\x5c\nTo=unix:@b \\\n\nTo=tcp:x:1,a=b\\,c\n", "[Relay]\nFrom=\\\n", "[Relay", "\\", "[Relay]\n\\\n=\n", "[Relay]\nTo=unix:@\\x20\nFrom=udp:\\x0a\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		first, ok := parse(text)
		if !ok {
			return
		}
		second, ok := parse(Format(first))
		require.True(t, ok, "%q does not read back", Format(first))
		require.Equal(t, first, second)
	})
}

// parse reads the text of a relay file that is trusted.
func parse(text string) (model.RelaySpec, bool) {
	settings, problem := parseUnit(os.DevNull, text, "Relay")
	if problem != nil {
		return model.RelaySpec{}, false
	}
	r := Relay{Origin: originOf("")}
	for _, s := range settings {
		if r.set(s) != nil {
			return model.RelaySpec{}, false
		}
	}
	return r.Spec, len(r.check()) == 0
}
