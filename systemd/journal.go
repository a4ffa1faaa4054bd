package systemd

import (
	"context"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
)

const (
	// fieldPrefix keeps our fields apart from those that the journal knows.
	fieldPrefix = "SOCKD_"
	// maxFieldName is what journald accepts (journal_field_valid).
	maxFieldName = 64
	identifier   = "sockd"
)

// Handler returns the place for the daemon's log records: the journal, with a
// field for each attribute, where w is the standard error and systemd joined it
// to the journal; lines of text on w anywhere else. Records below level are
// dropped.
func Handler(w *os.File, level slog.Leveler) slog.Handler {
	text := slog.NewTextHandler(w, &slog.HandlerOptions{Level: level})
	// An unreadable $JOURNAL_STREAM means that nobody promised us a journal.
	if ok, err := journal.StderrIsJournalStream(); w != os.Stderr || err != nil || !ok || !journal.Enabled() {
		return text
	}
	return &journalHandler{level: level, send: journal.Send, fallback: text}
}

// A journalHandler writes records as journal entries:
//
//	MESSAGE            the message and its attributes, as a person reads them
//	PRIORITY           syslog(3)'s number for the level
//	SOCKD_GROUP_KEY    each attribute, below the groups that it stands in
//	SOCKD_TIME         when the record was made, RFC 3339 in UTC
//	CODE_FILE/LINE/FUNC, SYSLOG_IDENTIFIER as in systemd.journal-fields(7)
//
// It is immutable: WithAttrs and WithGroup return changed copies.
type journalHandler struct {
	level    slog.Leveler
	send     func(message string, p journal.Priority, fields map[string]string) error
	fallback slog.Handler // takes what the journal refuses; carries the same attributes

	groups []string // opened by WithGroup, outermost first
	attrs  []field  // of WithAttrs, in order
}

// A field is one attribute, resolved, with the groups it stands in.
type field struct {
	path  []string
	value slog.Value
}

// Enabled reports whether records of level l are written.
func (h *journalHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

// Handle writes one record. What the journal does not take is written as text
// to the standard error, so that no record is lost without a trace.
func (h *journalHandler) Handle(ctx context.Context, r slog.Record) error {
	attrs := h.attrs[:len(h.attrs):len(h.attrs)]
	r.Attrs(func(a slog.Attr) bool {
		attrs = appendAttr(attrs, h.groups, a)
		return true
	})
	if err := h.send(message(r.Message, attrs), priority(r.Level), fields(r, attrs)); err != nil {
		return h.fallback.Handle(ctx, r)
	}
	return nil
}

// WithAttrs returns a handler that adds attrs to each record.
func (h *journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.fallback = h.fallback.WithAttrs(attrs)
	c.attrs = h.attrs[:len(h.attrs):len(h.attrs)]
	for _, a := range attrs {
		c.attrs = appendAttr(c.attrs, h.groups, a)
	}
	return &c
}

// WithGroup returns a handler that puts all later attributes below name.
func (h *journalHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	c := *h
	c.fallback = h.fallback.WithGroup(name)
	c.groups = append(h.groups[:len(h.groups):len(h.groups)], name)
	return &c
}

// appendAttr appends a, flattened, by slog.Handler's rules: an empty attribute
// and an empty group vanish, a group without a name joins its surroundings.
func appendAttr(to []field, groups []string, a slog.Attr) []field {
	a.Value = a.Value.Resolve()
	if a.Equal(slog.Attr{}) {
		return to
	}
	path := groups[:len(groups):len(groups)]
	if a.Key != "" {
		path = append(path, a.Key)
	}
	if a.Value.Kind() != slog.KindGroup {
		return append(to, field{path: path, value: a.Value})
	}
	for _, b := range a.Value.Group() {
		to = appendAttr(to, path, b)
	}
	return to
}

// fields returns the journal fields of a record beside MESSAGE and PRIORITY.
// Of two attributes with one name the later one wins, as in JSON.
func fields(r slog.Record, attrs []field) map[string]string {
	m := map[string]string{"SYSLOG_IDENTIFIER": identifier}
	if !r.Time.IsZero() {
		m[fieldPrefix+"TIME"] = r.Time.UTC().Format(time.RFC3339Nano)
	}
	if r.PC != 0 {
		f, _ := runtime.CallersFrames([]uintptr{r.PC}).Next()
		m["CODE_FILE"], m["CODE_LINE"], m["CODE_FUNC"] = f.File, strconv.Itoa(f.Line), f.Function
	}
	for _, a := range attrs {
		m[fieldName(a.path)] = valueText(a.value)
	}
	return m
}

// fieldName makes a name that the journal accepts: A-Z, 0-9 and _, at most 64
// long. Anything else becomes _.
func fieldName(path []string) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, strings.Join(path, "_"))
	name = fieldPrefix + name
	return name[:min(len(name), maxFieldName)]
}

// message is what journalctl shows of a record: a line like slog's text
// handler's, because most readers never look at the fields.
func message(text string, attrs []field) string {
	var b strings.Builder
	b.WriteString(text)
	for _, a := range attrs {
		b.WriteByte(' ')
		b.WriteString(quoteIfNeeded(strings.Join(a.path, ".")))
		b.WriteByte('=')
		b.WriteString(quoteIfNeeded(valueText(a.value)))
	}
	return b.String()
}

// quoteIfNeeded quotes what would not read as one word.
func quoteIfNeeded(s string) string {
	plain := func(r rune) bool { return r > ' ' && r != '=' && r != '"' && strconv.IsPrint(r) }
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return strconv.Quote(s)
}

// valueText prints a value. Times are RFC 3339, as everywhere in sockd.
func valueText(v slog.Value) string {
	if v.Kind() == slog.KindTime {
		return v.Time().Format(time.RFC3339Nano)
	}
	return v.String()
}

// priority maps slog's levels onto syslog(3)'s, each level to the next lower
// one that has a name.
func priority(l slog.Level) journal.Priority {
	switch {
	case l >= slog.LevelError:
		return journal.PriErr
	case l >= slog.LevelWarn:
		return journal.PriWarning
	case l >= slog.LevelInfo:
		return journal.PriInfo
	}
	return journal.PriDebug
}
