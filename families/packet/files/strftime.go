package files

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/sockd/sockd/families"
)

// conversions are those of strftime(3) in the C locale. %D and %x, which print
// slashes, %n and %t are left out: they make no file's name.
var conversions = map[byte]func(time.Time) string{
	'a': layout("Mon"), 'A': layout("Monday"), 'b': layout("Jan"), 'B': layout("January"), 'h': layout("Jan"),
	'c': layout("Mon Jan _2 15:04:05 2006"),
	'C': func(t time.Time) string { return fmt.Sprintf("%02d", t.Year()/100) },
	'd': layout("02"), 'e': layout("_2"),
	'F': layout("2006-01-02"),
	'g': func(t time.Time) string { y, _ := t.ISOWeek(); return fmt.Sprintf("%02d", y%100) },
	'G': func(t time.Time) string { y, _ := t.ISOWeek(); return strconv.Itoa(y) },
	'H': layout("15"), 'I': layout("03"),
	'j': layout("002"),
	'k': func(t time.Time) string { return fmt.Sprintf("%2d", t.Hour()) },
	'l': func(t time.Time) string { return fmt.Sprintf("%2d", (t.Hour()+11)%12+1) },
	'm': layout("01"), 'M': layout("04"),
	'p': layout("PM"), 'P': layout("pm"), 'r': layout("03:04:05 PM"),
	'R': layout("15:04"), 'S': layout("05"), 'T': layout("15:04:05"), 'X': layout("15:04:05"),
	's': func(t time.Time) string { return strconv.FormatInt(t.Unix(), 10) },
	'u': func(t time.Time) string { return strconv.Itoa((int(t.Weekday())+6)%7 + 1) },
	'w': func(t time.Time) string { return strconv.Itoa(int(t.Weekday())) },
	'U': func(t time.Time) string { return fmt.Sprintf("%02d", (t.YearDay()+6-int(t.Weekday()))/7) },
	'V': func(t time.Time) string { _, w := t.ISOWeek(); return fmt.Sprintf("%02d", w) },
	'W': func(t time.Time) string { return fmt.Sprintf("%02d", (t.YearDay()+6-(int(t.Weekday())+6)%7)/7) },
	'y': layout("06"), 'Y': func(t time.Time) string { return strconv.Itoa(t.Year()) },
	'z': layout("-0700"), 'Z': layout("MST"),
	'%': func(time.Time) string { return "%" },
}

func layout(l string) func(time.Time) string {
	return func(t time.Time) string { return t.Format(l) }
}

// shapes are what conversions look like, by regular expressions.
var shapes = map[string]string{
	"CdegGHIjklmMSsuUVwWyY": `[ 0-9]+`,
	"aAbBhpP":               `[A-Za-z]+`,
	"F":                     `[0-9]+-[0-9]{2}-[0-9]{2}`,
	"TX":                    `[0-9]{2}:[0-9]{2}:[0-9]{2}`,
	"R":                     `[0-9]{2}:[0-9]{2}`,
	"r":                     `[0-9]{2}:[0-9]{2}:[0-9]{2} [AP]M`,
	"c":                     `[A-Za-z]{3} [A-Za-z]{3} [ 0-9]{2} [0-9:]{8} [0-9]+`,
	"z":                     `[-+][0-9]{4}`,
	"Z":                     `[-+0-9A-Za-z]+`,
	"%":                     `%`,
}

// shape is a regular expression of what format makes of s.
func shape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b.WriteString(regexp.QuoteMeta(s[i : i+1]))
			continue
		}
		i++
		for letters, text := range shapes {
			if strings.IndexByte(letters, s[i]) >= 0 {
				b.WriteString(text)
			}
		}
	}
	return b.String()
}

// checkFormat finds what format cannot convert. Errors are *families.SyntaxError with
// the column.
func checkFormat(s string) error {
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			continue
		}
		i++
		if i == len(s) || conversions[s[i]] == nil {
			return &families.SyntaxError{What: "file name", Text: s, Column: i, Why: "want a conversion of strftime(3) that makes no /, or %% for a per cent sign"}
		}
	}
	return nil
}

// format is strftime(3) in the C locale. checkFormat has found s good.
func format(s string, t time.Time) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b.WriteByte(s[i])
			continue
		}
		i++
		b.WriteString(conversions[s[i]](t))
	}
	return b.String()
}
