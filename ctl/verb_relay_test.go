package ctl

import (
	"context"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sockd/sockd/ctl/borrow"
	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
	"github.com/stretchr/testify/require"
)

func TestRelayFlagsAreSettings(t *testing.T) {
	for line, want := range map[string]string{
		"":                                     "",
		"--max-conns 5":                        "--max-conns 5",
		"--idle 1m30s --connect-timeout 500ms": "--connect-timeout 500ms --idle 90s",
		"--idle none --connect-timeout none":   "--connect-timeout none --idle none",
		"--half-close 0":                       "--half-close 0",
		"--balance least --permanent":          "--balance least --permanent",
		"--permanent=false":                    "",
		"--half-close 2h --max-conns 1 --idle 60s":                        "--max-conns 1 --idle 1m --half-close 2h",
		"--balance fanout":                                                "--balance fanout",
		"--rate 1.5M --allow 10.0.0.0/8":                                  "--allow 10.0.0.0/8 --rate 1536k",
		"--allow ::1 --allow uid:root --allow gid:7 --allow 127.0.0.1/32": "--allow ::1 --allow uid:0 --allow gid:7 --allow 127.0.0.1",
		"--pass rights --rate 7":                                          "--rate 7 --pass rights",
	} {
		f := mustParseFlags(t, false, line)
		var words []string
		if s := f.settings(); s != nil {
			words = s.words()
		}
		require.Equal(t, want, strings.Join(words, " "), line)
	}
}

func mustParseFlags(tb testing.TB, canReset bool, line string) *relayFlags {
	tb.Helper()
	fs := flag.NewFlagSet("relay", flag.ContinueOnError)
	f := newRelayFlags(fs, canReset)
	require.NoError(tb, fs.Parse(strings.Fields(line)), line)
	return f
}

func TestRelayFlagsRefuseWhatMakesNoSense(t *testing.T) {
	for _, line := range []string{"--max-conns 0", "--max-conns -1", "--max-conns x", "--idle 0", "--idle soon", "--connect-timeout 0", "--balance dice", "--idle default",
		"--rate 0", "--rate fast", "--rate -1", "--rate default", "--allow", "--allow localhost", "--allow 10.0.0.1/8", "--allow uid:nosuchuser", "--allow default", "--pass", "--pass creds"} {
		fs := flag.NewFlagSet("relay", flag.ContinueOnError)
		fs.SetOutput(io.Discard)
		newRelayFlags(fs, false)
		require.Error(t, fs.Parse(strings.Fields(line)), line)
	}
}

func TestDefaultTakesASettingBack(t *testing.T) {
	f := mustParseFlags(t, true, "--idle default --max-conns default --balance least --allow default --rate default --pass default")
	require.Equal(t, []string{"idle", "max_conns", "allow", "rate", "pass"}, f.reset)
	c, err := request{}.relayChange(relaySetIn{Ref: "web", Settings: f.settings(), Reset: f.reset})
	require.NoError(t, err)
	require.Equal(t, new(int), c.MaxConns)
	require.Equal(t, new(time.Duration), c.Idle)
	require.Equal(t, "least", *c.Balance)
	require.Equal(t, new([]model.Allow), c.Allow)
	require.Equal(t, new(int64), c.Rate)
	require.Equal(t, new(string), c.Pass)
	require.Nil(t, c.HalfClose)
	require.Nil(t, c.To)
}

func TestSetReplacesTheListOfThoseWhoMayComeIn(t *testing.T) {
	f := mustParseFlags(t, true, "--allow 10.0.0.0/8 --allow uid:5 --rate 2k --pass rights")
	c, err := request{}.relayChange(relaySetIn{Ref: "web", Settings: f.settings()})
	require.NoError(t, err)
	require.Equal(t, "10.0.0.0/8 uid:5", model.FormatAllow(*c.Allow))
	require.Equal(t, int64(2048), *c.Rate)
	require.Equal(t, model.PassRights, *c.Pass)
	require.Nil(t, c.Balance)

	c, err = request{}.relayChange(relaySetIn{Ref: "web", Settings: &relaySettings{Rate: c.Rate}})
	require.NoError(t, err)
	require.Nil(t, c.Allow, "what is not given stays")
}

func TestWhatASpecificationSaysComesBackAsItsSettings(t *testing.T) {
	for _, spec := range []model.RelaySpec{
		{},
		{MaxConns: 7, ConnectTimeout: -1, Idle: -1, HalfClose: time.Second, Balance: "least", Permanent: true},
		{Idle: 90 * time.Second},
		{Balance: "fanout", Rate: 1000, Pass: model.PassRights, Allow: mustRules(t, "10.0.0.0/8 ::1 uid:0 gid:100")},
	} {
		var back model.RelaySpec
		require.NoError(t, settingsOf(spec).apply(&back))
		require.Equal(t, spec, back)
	}
	require.Equal(t, relaySettings{}, settingsOf(model.RelaySpec{MaxConns: model.DefaultMaxConns, ConnectTimeout: model.DefaultConnectTimeout}), "a default is not told")
}

func TestSettingsOutOfRangeAreRefused(t *testing.T) {
	n := func(i int64) *int64 { return &i }
	for name, s := range map[string]relaySettings{
		"no sessions": {MaxConns: n(0)}, "negative sessions": {MaxConns: n(-1)}, "too many": {MaxConns: n(1 << 40)},
		"idle": {Idle: n(-2)}, "connect": {ConnectTimeout: n(-5)}, "half": {HalfClose: n(-9)},
		"no rate": {Rate: n(0)}, "negative rate": {Rate: n(-1)},
		"a list of nobody": {Allow: []string{}}, "no rule": {Allow: []string{""}}, "half a rule": {Allow: []string{"10.0.0.0/8", "uid:"}},
		"too many rules": {Allow: make([]string, model.MaxAllow+1)},
	} {
		require.ErrorIs(t, s.apply(&model.RelaySpec{}), families.ErrSyntax, name)
	}
}

func mustRules(tb testing.TB, texts string) []model.Allow {
	tb.Helper()
	rules, err := allowRules(strings.Fields(texts))
	require.NoError(tb, err)
	return rules
}

func TestUnixEndpointsAreMadeAbsolute(t *testing.T) {
	t.Chdir(t.TempDir())
	dir, err := os.Getwd()
	require.NoError(t, err)
	for text, want := range map[string]string{
		"tcp:127.0.0.1:80":     "tcp:127.0.0.1:80",
		"unix:x.sock":          "unix:" + dir + "/x.sock",
		"unixgram:./x,mode=60": "unixgram:" + dir + "/x,mode=60",
		"unix:/run/x":          "unix:/run/x",
		"unixpacket:@name":     "unixpacket:@name",
		"unix:./@x":            "unix:" + dir + "/@x",
		`unix:a\,b`:            "unix:" + dir + `/a\,b`,
	} {
		e, err := localEndpoint(text)
		require.NoError(t, err, text)
		require.Equal(t, want, e.String())
	}
	_, err = localEndpoint("unix:")
	require.ErrorIs(t, err, families.ErrSyntax)
}

func TestDirectoriesGoWithTheirTargets(t *testing.T) {
	dir := t.TempDir()
	var o opened
	defer o.close()
	require.NoError(t, o.openTo([]string{"tcp:127.0.0.1:1", "unix:" + dir + "/a.sock", "unix:@abstract", "unixgram:" + dir + "/b.sock"}))
	require.Equal(t, []relayDir{{To: 1, Descriptor: 0, Name: "a.sock"}, {To: 3, Descriptor: 1, Name: "b.sock"}}, o.dirs)
	require.Len(t, o.files, 2)
	require.Error(t, (&opened{}).openTo([]string{"unix:" + filepath.Join(dir, "nowhere", "x.sock")}))
}

func TestDirectoriesOnTheWireAreChecked(t *testing.T) {
	for name, d := range map[string][]relayDir{
		"no such TO": {{To: 2, Name: "x"}}, "negative": {{To: -1, Name: "x"}}, "a path": {{To: 0, Name: "a/b"}},
		"upwards": {{To: 0, Name: ".."}}, "empty": {{To: 0}}, "a NUL": {{To: 0, Name: "a\x00"}},
	} {
		_, err := request{}.takeDirs(d, 2)
		require.ErrorIs(t, err, families.ErrSyntax, name)
	}
}

// A descriptor that could not be used was told of by an errno, or by the first
// session's dial, and one that was not there by the name of another parameter.
func TestDescriptorsOfARelayAreChecked(t *testing.T) {
	sh, _ := mustShell(t)
	dir, name, err := borrow.Dir(filepath.Join(t.TempDir(), "a,b\xff"))
	require.NoError(t, err)
	defer closeFile(dir)
	pipe := make([]int, 2)
	require.NoError(t, syscall.Pipe2(pipe, syscall.O_CLOEXEC))
	defer closeAll(pipe)
	text, index := families.Escape(name), 7
	add := relayAddIn{From: "tcp:127.0.0.1:0", To: []string{"tcp:127.0.0.1:1", "unix:/x/" + text}}
	for why, in := range map[string]relayAddIn{
		"dirs[0].descriptor is no directory":                          {Dirs: []relayDir{{To: 1, Descriptor: 1, Name: text}}},
		`"dirs[1].descriptor"`:                                        {Dirs: []relayDir{{To: 1, Name: text}, {To: 0, Descriptor: 7, Name: text}}},
		`"from_descriptor"`:                                           {FromDescriptor: &index},
		"dirs[0].to is -1: want the index of a TO, from 0 to 1":       {Dirs: []relayDir{{To: -1, Name: text}}},
		"dirs[1].to is 1, which has a directory already":              {Dirs: []relayDir{{To: 1, Name: text}, {To: 1, Descriptor: 1, Name: text}}},
		`dirs[0].name: address "a\q": column 2: after a backslash`:    {Dirs: []relayDir{{To: 1, Name: `a\q`}}},
		`dirs[0].name is "a\x00": want a file's name: does not parse`: {Dirs: []relayDir{{To: 1, Name: `a\x00`}}},
	} {
		in.From, in.To = add.From, add.To
		err := sh.env.call(context.Background(), "io.sockd.Relay.Add", in, nil, dir, pipe[0])
		require.ErrorContains(t, err, why)
		require.Equal(t, ExitUsage, ExitCode(err), "%v", err)
	}
	add.Dirs = []relayDir{{To: 1, Name: text}}
	require.NoError(t, sh.env.call(context.Background(), "io.sockd.Relay.Add", add, nil, dir))
}

func TestShellWordsReadBackAsTheyWere(t *testing.T) {
	for _, word := range []string{"plain", "", "a b", "it's", `\x`, "$HOME", "*", "unix:/tmp/a,mode=660", "~", "a\nb", "!x", "#"} {
		got, err := exec.Command("sh", "-c", "printf %s "+shellWord(word)).Output()
		require.NoError(t, err)
		require.Equal(t, word, string(got))
	}
	require.Equal(t, "unix:/tmp/a,mode=660", shellWord("unix:/tmp/a,mode=660"), "an endpoint needs no quotes")
}
