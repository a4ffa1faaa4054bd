package ctl

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/sockd/sockd/families/model"
	"github.com/stretchr/testify/require"
)

// out is a world whose stdout is kept.
func out(set func(*Env)) (*Env, *bytes.Buffer) {
	var b bytes.Buffer
	e := &Env{Stdout: &b, Stderr: &bytes.Buffer{}}
	if set != nil {
		set(e)
	}
	return e, &b
}

var listed = []model.Socket{
	{ID: 1, Family: "inet", Type: "stream", State: "listening", Local: "127.0.0.1:80", Owner: model.Owner{UID: 7, GID: 8}},
	{ID: 20, Family: "local", Type: "dgram", State: "new", Drops: model.Drops{"queue": 3, "cut": 1}, Parent: 1},
}

func TestAListIsPrintedAsItIsAskedFor(t *testing.T) {
	columns := []string{"id", "state", "local"}
	for name, tt := range map[string]struct {
		set  func(*Env)
		want string
	}{
		"a table":                     {nil, "ID  STATE      LOCAL\n1   listening  127.0.0.1:80\n20  new        -\n"},
		"a table without header":      {func(e *Env) { e.NoHeader = true }, "1   listening  127.0.0.1:80\n20  new        -\n"},
		"tabs for programs":           {func(e *Env) { e.NoHeader, e.Columns = true, []string{"id", "drops"} }, "1\t-\n20\tcut=1 queue=3\n"},
		"spaces for a terminal":       {func(e *Env) { e.StdoutTerminal, e.NoHeader, e.Columns = true, true, []string{"id", "uid"} }, "1   7\n20  0\n"},
		"owner is a uid, gid apart":   {func(e *Env) { e.NoHeader, e.Columns = true, []string{"owner", "gid", "parent"} }, "7\t8\t-\n0\t0\t1\n"},
		"JSON is one list":            {func(e *Env) { e.JSON = true }, `[{"id":1,`},
		"JSONL is one object a line":  {func(e *Env) { e.JSONL = true }, `{"id":1,`},
		"JSON goes before columns":    {func(e *Env) { e.JSON, e.Columns = true, []string{"id"} }, `[{"id":1,`},
		"JSONL goes before JSON, too": {func(e *Env) { e.JSON, e.JSONL = true, true }, `{"id":1,`},
	} {
		t.Run(name, func(t *testing.T) {
			e, got := out(tt.set)
			require.NoError(t, printList(e, listed, columns))
			if e.JSON || e.JSONL {
				require.Equal(t, tt.want, got.String()[:len(tt.want)])
				return
			}
			require.Equal(t, tt.want, got.String())
		})
	}
}

func TestAnEmptyListIsAnEmptyList(t *testing.T) {
	e, got := out(func(e *Env) { e.JSON = true })
	require.NoError(t, printList[model.Relay](e, nil, relayColumns))
	require.Equal(t, "[]\n", got.String())
	e, got = out(func(e *Env) { e.JSONL = true })
	require.NoError(t, printList(e, []model.Relay{}, relayColumns))
	require.Empty(t, got.String())
	e, got = out(nil)
	require.NoError(t, printList(e, []model.Relay{}, []string{"id", "name"}))
	require.Equal(t, "ID  NAME\n", got.String())
	e, _ = out(func(e *Env) { e.Columns = []string{"colour"} })
	require.Equal(t, ExitUsage, ExitCode(printList(e, []model.Relay{}, relayColumns)), "an unknown column is told even when nothing is there")
}

func TestEveryColumnOfATableIsAField(t *testing.T) {
	for _, tt := range []struct {
		shape   any
		columns []string
	}{{model.Socket{}, socketColumns}, {model.Relay{}, relayColumns}, {model.Session{}, sessionColumns}, {model.Capture{}, captureColumns}} {
		require.NoError(t, checkFields("table", tt.columns, fieldNames(tt.shape)))
	}
}

func TestForeignTextCannotBreakATable(t *testing.T) {
	for text, want := range map[string]string{
		"":                   "-",
		"/run/x.sock":        "/run/x.sock",
		"/tmp/a b":           "/tmp/a b",
		"/tmp/ünï":           "/tmp/ünï",
		"a\tb\nc":            `a\x09b\x0ac`,
		"\x1b[31m":           `\x1b[31m`,
		"bad\xffutf8":        `bad\xffutf8`,
		"csi\u009b31m":       `csi\xc2\x9b31m`,
		"rubout\x7f":         `rubout\x7f`,
		"replacement \ufffd": `replacement \xef\xbf\xbd`,
	} {
		require.Equal(t, want, cell(text), "%q", text)
	}
}

func FuzzACellIsOneSafeWord(f *testing.F) {
	for _, s := range []string{"", "x", "a\tb", "\x1b]0;x\a", "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c := cell(s)
		require.NotEmpty(t, c)
		require.True(t, utf8.ValidString(c))
		require.NotContains(t, c, "\t")
		require.NotContains(t, c, "\n")
		require.NotContains(t, c, "\x1b")
	})
}

func TestGlobsKeepWhatMatches(t *testing.T) {
	for words, want := range map[string][]model.ID{
		"":                         {1, 20},
		"family=inet":              {1},
		"family=*":                 {1, 20},
		"local=127.*":              {1},
		"local=*:80":               {1},
		"local=-":                  {20},
		"state=[ln]* type=stream":  {1},
		"uid=7":                    {1},
		"drops=*queue=3*":          {20},
		"family=inet family=local": {},
		"id=2?":                    {20},
	} {
		globs, err := parseGlobs(strings.Fields(words))
		require.NoError(t, err, words)
		kept, err := keep(listed, globs)
		require.NoError(t, err, words)
		ids := []model.ID{}
		for _, s := range kept {
			ids = append(ids, s.ID)
		}
		require.Equal(t, want, ids, words)
	}
	for _, word := range []string{"state", "=x", "state=["} {
		_, err := parseGlobs([]string{word})
		require.Equal(t, ExitUsage, ExitCode(err), word)
	}
	_, err := keep(listed, []fieldGlob{{"colour", "red"}})
	require.Equal(t, ExitUsage, ExitCode(err))
}

func TestAStarCrossesSlashes(t *testing.T) {
	paths := []model.Socket{{ID: 1, Local: "/run/app/x.sock"}}
	globs, err := parseGlobs([]string{"local=/run/*.sock"})
	require.NoError(t, err)
	kept, err := keep(paths, globs)
	require.NoError(t, err)
	require.Len(t, kept, 1)
}

func TestShowHasEveryFieldOnItsLine(t *testing.T) {
	e, got := out(nil)
	require.NoError(t, printFields(e, &model.Session{ID: 3, Since: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Peer: "10.0.0.1:5"}))
	require.Equal(t, "id          3\nrelay       0\npeer        10.0.0.1:5\nbackend     -\nstate       -\nsince       2026-01-02T03:04:05Z\nrx_bytes    0\ntx_bytes    0\npath        -\nlimited_by  -\n", got.String())
}

func TestJSONLeavesAmpersandsAlone(t *testing.T) {
	e, got := out(func(e *Env) { e.JSON = true })
	require.NoError(t, printObject(e, model.Capture{Filter: "tcp[13] & 2 != 0 and len > 5"}, nil))
	require.Contains(t, got.String(), "tcp[13] & 2 != 0 and len > 5")
	require.True(t, json.Valid(got.Bytes()))
}
