package systemd

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/slogtest"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
	"github.com/stretchr/testify/require"
)

// An entry is one journal entry as the handler sends it.
type entry struct {
	message  string
	priority journal.Priority
	fields   map[string]string
}

// A book is a journal that keeps its entries, or refuses them with err.
type book struct {
	entries []entry
	err     error
}

func (b *book) send(message string, p journal.Priority, fields map[string]string) error {
	if b.err == nil {
		b.entries = append(b.entries, entry{message, p, fields})
	}
	return b.err
}

func newJournal(b *book, level slog.Leveler, fallback *strings.Builder) slog.Handler {
	return &journalHandler{level: level, send: b.send, fallback: slog.NewTextHandler(fallback, nil)}
}

// TestJournalHandlerKeepsTheLaws runs the standard library's laws for handlers.
// They want nested groups back, so the test undoes the flattening; its
// attribute names have no underscore of their own.
func TestJournalHandlerKeepsTheLaws(t *testing.T) {
	var b *book
	slogtest.Run(t, func(*testing.T) slog.Handler {
		b = &book{}
		return newJournal(b, slog.LevelInfo, &strings.Builder{})
	}, func(t *testing.T) map[string]any {
		require.Len(t, b.entries, 1)
		return unflatten(b.entries[0])
	})
}

func unflatten(e entry) map[string]any {
	// The laws' message is one word; what follows it is for people's eyes.
	text, _, _ := strings.Cut(e.message, " ")
	m := map[string]any{slog.MessageKey: text, slog.LevelKey: e.priority}
	for name, value := range e.fields {
		name, ours := strings.CutPrefix(name, fieldPrefix)
		if !ours {
			continue
		}
		if name == "TIME" {
			m[slog.TimeKey] = value
			continue
		}
		path := strings.Split(name, "_")
		at := m
		for _, group := range path[:len(path)-1] {
			if at[group] == nil {
				at[group] = map[string]any{}
			}
			at = at[group].(map[string]any)
		}
		at[strings.ToLower(path[len(path)-1])] = value // slogtest's groups are capitals, its attributes not
	}
	return m
}

func TestJournalHandlerWritesFields(t *testing.T) {
	var b book
	log := slog.New(newJournal(&b, slog.LevelDebug, &strings.Builder{}))
	when := time.Date(2026, 11, 23, 1, 2, 3, 4, time.FixedZone("", 3600))
	log.With("relay", "web").WithGroup("peer").Warn("session reset",
		"uid", 1000, "addr", "10.0.0.1:80", "took", 90*time.Millisecond, "since", when,
		"err", errors.New("connection reset by peer"), slog.Group("empty"), slog.Group("", slog.Bool("inline", true)))

	require.Len(t, b.entries, 1)
	e := b.entries[0]
	require.Equal(t, journal.PriWarning, e.priority)
	require.Equal(t, `session reset relay=web peer.uid=1000 peer.addr=10.0.0.1:80 peer.took=90ms `+
		`peer.since=2026-11-23T01:02:03.000000004+01:00 peer.err="connection reset by peer" peer.inline=true`, e.message)
	for name, want := range map[string]string{
		"SOCKD_RELAY":       "web",
		"SOCKD_PEER_UID":    "1000",
		"SOCKD_PEER_ADDR":   "10.0.0.1:80",
		"SOCKD_PEER_TOOK":   "90ms",
		"SOCKD_PEER_ERR":    "connection reset by peer",
		"SOCKD_PEER_INLINE": "true",
		"SYSLOG_IDENTIFIER": "sockd",
		"CODE_FUNC":         "github.com/sockd/sockd/systemd.TestJournalHandlerWritesFields",
	} {
		require.Equal(t, want, e.fields[name], name)
	}
	require.Contains(t, e.fields["CODE_FILE"], "journal_test.go")
	require.NotContains(t, e.fields, "SOCKD_PEER_EMPTY")
	_, err := time.Parse(time.RFC3339Nano, e.fields["SOCKD_TIME"])
	require.NoError(t, err)
}

func TestJournalHandlerSharesNothingBetweenItsCopies(t *testing.T) {
	var b book
	parent := slog.New(newJournal(&b, slog.LevelDebug, &strings.Builder{})).With("a", 1, "b", 2, "c", 3)
	left, right := parent.With("side", "left"), parent.With("side", "right")
	left.Info("l", "x", 1)
	right.Info("r", "x", 2)
	parent.Info("p")
	require.Equal(t, "l a=1 b=2 c=3 side=left x=1", b.entries[0].message)
	require.Equal(t, "r a=1 b=2 c=3 side=right x=2", b.entries[1].message)
	require.Equal(t, "p a=1 b=2 c=3", b.entries[2].message)
}

func TestJournalPriorities(t *testing.T) {
	for level, want := range map[slog.Level]journal.Priority{
		slog.LevelDebug - 4: journal.PriDebug,
		slog.LevelDebug:     journal.PriDebug,
		slog.LevelInfo:      journal.PriInfo,
		slog.LevelInfo + 1:  journal.PriInfo,
		slog.LevelWarn:      journal.PriWarning,
		slog.LevelError:     journal.PriErr,
		slog.LevelError + 4: journal.PriErr,
	} {
		require.Equal(t, want, priority(level), level.String())
	}
}

func TestJournalFieldNames(t *testing.T) {
	for _, tt := range []struct{ key, want string }{
		{"uid", "SOCKD_UID"},
		{"Relay.Name", "SOCKD_RELAY_NAME"},
		{"_hidden", "SOCKD__HIDDEN"},
		{"2nd", "SOCKD_2ND"},
		{"größe\n=x", "SOCKD_GR__E__X"},
		{"", "SOCKD_"},
		{strings.Repeat("k", 100), "SOCKD_" + strings.Repeat("K", 58)},
	} {
		require.Equal(t, tt.want, fieldName([]string{tt.key}), tt.key)
	}
}

func TestWhatTheJournalRefusesIsWrittenAsText(t *testing.T) {
	b := book{err: errors.New("no buffer space available")}
	var text strings.Builder
	slog.New(newJournal(&b, slog.LevelInfo, &text)).With("relay", "web").WithGroup("g").Error("lost", "k", "v")
	require.Contains(t, text.String(), `level=ERROR msg=lost relay=web g.k=v`)
}

func TestHandlerWritesTextWhereThereIsNoJournal(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	defer f.Close()
	t.Setenv("JOURNAL_STREAM", "")
	log := slog.New(Handler(f, slog.LevelWarn))
	log.Info("too low")
	log.Warn("kept", "id", 7)
	got, err := os.ReadFile(f.Name())
	require.NoError(t, err)
	require.NotContains(t, string(got), "too low")
	require.Contains(t, string(got), "level=WARN msg=kept id=7")
}

// FuzzJournalFields holds what the journal demands of any record: field names
// of its alphabet and length, and a message that is one line.
func FuzzJournalFields(f *testing.F) {
	f.Add("peer", "uid", "1000")
	f.Add("", "", "")
	f.Add("größe", "a=b\n", "line\nline\x00")
	f.Add(strings.Repeat("g", 70), "MESSAGE", "\xff")
	f.Fuzz(func(t *testing.T, group, key, value string) {
		var b book
		h := newJournal(&b, slog.LevelDebug, &strings.Builder{})
		slog.New(h).WithGroup(group).Info("m", slog.String(key, value))
		require.Len(t, b.entries, 1)
		require.NotContains(t, b.entries[0].message, "\n")
		for name := range b.entries[0].fields {
			require.Regexp(t, `\A[A-Z][A-Z0-9_]{0,63}\z`, name)
		}
	})
}

func TestTheJournalHandlerIsEnabledByLevel(t *testing.T) {
	h := newJournal(&book{}, slog.LevelWarn, &strings.Builder{})
	require.False(t, h.Enabled(context.Background(), slog.LevelInfo))
	require.True(t, h.Enabled(context.Background(), slog.LevelWarn))
}
