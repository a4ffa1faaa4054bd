package ctl

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"reflect"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
)

// unnamed stands where a value is empty. An empty cell would vanish between the
// spaces of a table, and between the tabs for a shell's read.
const unnamed = "-"

// printObject writes the object that a verb made or changed: as `show --json`
// does with --json or --jsonl, with -o the named fields, else what text writes.
func printObject(e *Env, object any, text func(w io.Writer) error) error {
	switch {
	case e.wantsJSON():
		return e.printJSON(object)
	case len(e.Columns) > 0:
		return printTable(e, []any{object}, nil)
	}
	return text(e.Stdout)
}

// printLine is a text for printObject: one line.
func printLine(words ...any) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := fmt.Fprintln(w, words...)
		return err
	}
}

// printList writes objects of one kind: a JSON list, one JSON object a line, or
// a table of the named columns (-o replaces them).
func printList[T any](e *Env, objects []T, columns []string) error {
	switch {
	case e.JSONL:
		for _, o := range objects {
			if err := e.printJSON(o); err != nil {
				return err
			}
		}
		return nil
	case e.JSON:
		if objects == nil {
			objects = []T{}
		}
		return e.printJSON(objects)
	}
	rows := make([]any, len(objects))
	for i, o := range objects {
		rows[i] = o
	}
	if len(rows) == 0 {
		var shape T
		return printTableShape(e, fieldNames(shape), rows, columns)
	}
	return printTable(e, rows, columns)
}

// printTable writes objects as a table. Columns are field names of any of them.
func printTable(e *Env, objects []any, columns []string) error {
	var known []string
	for _, o := range objects {
		known = append(known, fieldNames(o)...)
	}
	return printTableShape(e, known, objects, columns)
}

func printTableShape(e *Env, known []string, objects []any, columns []string) error {
	if len(e.Columns) > 0 {
		columns = e.Columns
	}
	if err := checkFields("-o", columns, known); err != nil {
		return err
	}
	rows := make([][]string, 0, len(objects)+1)
	if !e.NoHeader {
		header := make([]string, len(columns))
		for i, c := range columns {
			header[i] = strings.ToUpper(c)
		}
		rows = append(rows, header)
	}
	for _, o := range objects {
		texts := fieldTexts(o)
		row := make([]string, len(columns))
		for i, c := range columns {
			row[i] = cell(texts[c])
		}
		rows = append(rows, row)
	}
	// What programs read: -o names the columns, and a tab stands between.
	if len(e.Columns) > 0 && !e.StdoutTerminal {
		return writeTabs(e.Stdout, rows)
	}
	return writePadded(e.Stdout, rows)
}

func checkFields(where string, names, known []string) error {
	for _, n := range names {
		if !slices.Contains(known, n) {
			return &UsageError{Why: fmt.Sprintf("%s: no field is called %q", where, n), Hint: "fields: " + strings.Join(unique(known), " ")}
		}
	}
	return nil
}

func unique(list []string) []string {
	var out []string
	for _, s := range list {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

func writeTabs(w io.Writer, rows [][]string) error {
	var b bytes.Buffer
	for _, r := range rows {
		b.WriteString(strings.Join(r, "\t") + "\n")
	}
	_, err := w.Write(b.Bytes())
	return err
}

// gap is the space between two columns.
const gap = "  "

func writePadded(w io.Writer, rows [][]string) error {
	var widths []int
	for _, r := range rows {
		for i, c := range r {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	var b bytes.Buffer
	for _, r := range rows {
		for i, c := range r {
			b.WriteString(c)
			if i < len(r)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c)) + gap)
			}
		}
		b.WriteByte('\n')
	}
	_, err := w.Write(b.Bytes())
	return err
}

// cell makes a value safe to stand in a table.
func cell(s string) string {
	if s == "" {
		return unnamed
	}
	return visible(s)
}

// Visible makes text safe to stand on a line: a path may hold a newline, a tab, or
// an escape sequence for the terminal. Bytes that do not print become \xNN.
func Visible(s string) string { return visible(s) }

func visible(s string) string { return families.Printable(s) }

// fieldNames are the JSON names of an object's fields in their order, and uid
// and gid, which are the owner's.
func fieldNames(object any) []string {
	var names []string
	walkFields(object, func(name, _ string) { names = append(names, name) })
	return names
}

// fieldTexts are an object's fields as text, by their JSON names.
func fieldTexts(object any) map[string]string {
	texts := map[string]string{}
	walkFields(object, func(name, text string) { texts[name] = text })
	return texts
}

// walkFields calls f for each field of a struct, through embedded ones. A field
// that JSON leaves out when it is empty has no text then.
func walkFields(object any, f func(name, text string)) {
	v := reflect.Indirect(reflect.ValueOf(object))
	if !v.IsValid() || v.Kind() != reflect.Struct {
		return
	}
	for i := range v.NumField() {
		field := v.Type().Field(i)
		if field.Anonymous {
			walkFields(v.Field(i).Interface(), f)
			continue
		}
		name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		if name == "" || name == "-" {
			continue
		}
		text := ""
		if !strings.HasPrefix(options, "omit") || !v.Field(i).IsZero() {
			text = fieldText(v.Field(i))
		}
		f(name, text)
		if owner, ok := v.Field(i).Interface().(model.Owner); ok {
			f("uid", fmt.Sprint(owner.UID))
			f("gid", fmt.Sprint(owner.GID))
		}
	}
}

// fieldText is one field as a table shows it and a GLOB matches it. Lists are
// joined by spaces, counters by cause are CAUSE=COUNT, an owner is his uid.
func fieldText(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case model.Owner:
		return strconv.FormatUint(uint64(x.UID), 10)
	case time.Time:
		if x.IsZero() {
			return ""
		}
		return x.UTC().Format(time.RFC3339)
	case time.Duration:
		return model.FormatDuration(x)
	case model.Drops:
		return pairs(x)
	case map[string]string:
		return pairs(x)
	case []string:
		return strings.Join(x, " ")
	case json.RawMessage:
		return string(x)
	}
	return fmt.Sprint(v.Interface())
}

func pairs[V any](m map[string]V) string {
	out := make([]string, 0, len(m))
	for k, v := range m {
		out = append(out, fmt.Sprintf("%s=%v", k, v))
	}
	sort.Strings(out)
	return strings.Join(out, " ")
}

// A fieldGlob is FIELD=GLOB on the command line of ls.
type fieldGlob struct{ field, glob string }

// parseGlobs reads FIELD=GLOB words. The pattern is that of path.Match, but "*"
// and "?" also match "/", which addresses are full of.
func parseGlobs(words []string) ([]fieldGlob, error) {
	var globs []fieldGlob
	for _, w := range words {
		field, glob, ok := strings.Cut(w, "=")
		if !ok || field == "" {
			return nil, &UsageError{Verb: "ls", Why: fmt.Sprintf("%q: want FIELD=GLOB", w), Hint: "sockd-ctl ls sockets state=listening"}
		}
		if _, err := path.Match(glob, ""); err != nil {
			return nil, &UsageError{Verb: "ls", Why: fmt.Sprintf("pattern %q does not parse", glob)}
		}
		globs = append(globs, fieldGlob{field, glob})
	}
	return globs, nil
}

// noSlash hides "/" from path.Match, which lets no star cross it.
func noSlash(s string) string { return strings.ReplaceAll(s, "/", "\x00") }

// match tells whether all globs match the object's fields. An empty field is "",
// and "-", as tables show it.
func match(object any, globs []fieldGlob) bool {
	texts := fieldTexts(object)
	for _, g := range globs {
		text := texts[g.field]
		ok, _ := path.Match(noSlash(g.glob), noSlash(text)) // parseGlobs has checked the pattern
		if !ok && (text != "" || g.glob != unnamed) {
			return false
		}
	}
	return true
}

// keep returns the objects that all globs match. A field that the kind has not
// is a usage error.
func keep[T any](objects []T, globs []fieldGlob) ([]T, error) {
	var shape T
	names := make([]string, len(globs))
	for i, g := range globs {
		names[i] = g.field
	}
	if err := checkFields("ls", names, fieldNames(shape)); err != nil {
		return nil, err
	}
	kept := []T{}
	for _, o := range objects {
		if match(o, globs) {
			kept = append(kept, o)
		}
	}
	return kept, nil
}
