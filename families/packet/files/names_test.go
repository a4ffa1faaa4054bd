package files

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/stretchr/testify/require"
)

func mustPattern(tb testing.TB, file string, ring int) *Pattern {
	tb.Helper()
	p, err := NewPattern(file, ring)
	require.NoError(tb, err)
	return p
}

func TestNamesOfFiles(t *testing.T) {
	at := func(hours ...int) (times []time.Time) {
		for _, h := range hours {
			times = append(times, time.Date(2026, 12, 31, h, 0, 0, 0, time.UTC))
		}
		return times
	}
	for name, tt := range map[string]struct {
		file  string
		ring  int
		times []time.Time
		want  []string
	}{
		"a counter before the suffix":    {"cap.pcapng", 0, at(8, 9, 10), []string{"cap_00001.pcapng", "cap_00002.pcapng", "cap_00003.pcapng"}},
		"without a suffix":               {"/d/cap", 0, at(8, 9), []string{"/d/cap_00001", "/d/cap_00002"}},
		"a hidden file has no suffix":    {".cap", 0, at(8), []string{".cap_00001"}},
		"several suffixes":               {"a.b.pcap", 0, at(8), []string{"a.b_00001.pcap"}},
		"a ring, as wide as needed":      {"cap.pcapng", 10, at(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11), strings.Fields("cap_01.pcapng cap_02.pcapng cap_03.pcapng cap_04.pcapng cap_05.pcapng cap_06.pcapng cap_07.pcapng cap_08.pcapng cap_09.pcapng cap_10.pcapng cap_01.pcapng")},
		"a ring of one":                  {"x.pcap", 1, at(1, 2), []string{"x_1.pcap", "x_1.pcap"}},
		"the time":                       {"d/%Y-%m-%d_%H.pcapng", 0, at(22, 23, 24), []string{"d/2026-12-31_22.pcapng", "d/2026-12-31_23.pcapng", "d/2027-01-01_00.pcapng"}},
		"two of one hour":                {"%H.pcapng", 0, at(8, 8, 8, 9), []string{"08.pcapng", "08_00002.pcapng", "08_00003.pcapng", "09.pcapng"}},
		"the time comes round again":     {"%H.pcapng", 0, at(8, 32), []string{"08.pcapng", "08_00002.pcapng"}},
		"a ring does not number by time": {"%H.pcapng", 20, at(8, 9, 9), []string{"08.pcapng", "09.pcapng", "09_02.pcapng"}},
		"per cent":                       {"100%%.pcapng", 0, at(8, 9), []string{"100%_00001.pcapng", "100%_00002.pcapng"}},
		"the directory is as it stands":  {"/50%/a.pcap", 0, at(8), []string{"/50%/a_00001.pcap"}},
		"the time in the suffix":         {"cap.%H", 0, at(8, 8), []string{"cap.08", "cap_00002.08"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := mustPattern(t, tt.file, tt.ring)
			var got []string
			for _, begun := range tt.times {
				got = append(got, p.Next(begun))
			}
			require.Equal(t, tt.want, got)
		})
	}
}

func TestANameThatIsForgottenMayComeAgain(t *testing.T) {
	p := mustPattern(t, "%M.pcapng", 0)
	at := time.Date(2026, 1, 1, 1, 1, 0, 0, time.UTC)
	require.Equal(t, "01.pcapng", p.Next(at))
	p.Forget("01.pcapng")
	require.Equal(t, "01.pcapng", p.Next(at.Add(time.Hour)))
}

func TestAFileThatIsWrittenIsHiddenBesideTheOthers(t *testing.T) {
	require.Equal(t, "/d/.cap.pcapng.1.part", mustPattern(t, "/d/cap.pcapng", 0).Part(1))
	require.Equal(t, ".cap-H.pcapng.12.part", mustPattern(t, "cap-%H.pcapng", 0).Part(12))
}

func TestNamesThatAreRefused(t *testing.T) {
	for file, column := range map[string]int{"": 0, "/tmp/": 0, "a/..": 0, "cap-%Q": 5, "cap%": 4, "%D.pcapng": 1, "%H%n": 3} {
		p, err := NewPattern(file, 0)
		var syntax *families.SyntaxError
		require.ErrorAs(t, err, &syntax, "%q", file)
		require.Equal(t, column, syntax.Column, "%q", file)
		require.Nil(t, p)
	}
}

// date(1) is the oracle: it prints what strftime(3) does.
func TestConversionsAreThoseOfStrftime(t *testing.T) {
	var all []string
	for c := range conversions {
		all = append(all, "%"+string(c))
	}
	text := strings.Join(all, "|")
	for _, zone := range []string{"UTC", "Europe/Berlin", "Asia/Kolkata"} {
		loc := mustLocation(t, zone)
		for _, at := range []string{"2026-11-23 08:57:24", "2024-02-29 00:00:00", "2027-01-01 12:59:59", "2023-01-01 23:05:07", "2020-12-31 11:00:00", "2026-10-25 02:30:00"} {
			when, err := time.ParseInLocation(time.DateTime, at, loc)
			require.NoError(t, err)
			cmd := exec.Command("date", "-d", "@"+format("%s", when), "+"+text)
			cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ="+zone)
			want, err := cmd.Output()
			require.NoError(t, err)
			require.Equal(t, strings.TrimSuffix(string(want), "\n"), format(text, when), "%s %s: %s", zone, at, text)
		}
	}
}

// What is taken as a pattern makes names in its own directory, never one twice.
func FuzzPattern(f *testing.F) {
	for _, seed := range []string{"cap.pcapng", "%Y-%m-%d/%H%M%S.pcap", "%%", "%", "/tmp/%a %c", "..%%", "%e.%k", "/", "a%Zb%z"} {
		f.Add(seed, int64(1_790_000_000), 3)
	}
	f.Fuzz(func(t *testing.T, file string, second int64, ring int) {
		p, err := NewPattern(file, max(0, ring%1000))
		if err != nil {
			require.Nil(t, p)
			return
		}
		dir := filepath.Join(p.dir, ".")
		seen := map[string]bool{}
		for i := range int64(4) {
			name := p.Next(time.Unix(second+i/2, 0).UTC())
			require.Equal(t, dir, filepath.Dir(name), "%q", name)
			require.False(t, seen[name] && p.ring == 0, "%q twice", name)
			seen[name] = true
			require.Equal(t, dir, filepath.Dir(p.Part(int(i)+1)))
			require.NotContains(t, seen, p.Part(int(i)+1))
		}
	})
}

func TestTheOldestFilesGoFirst(t *testing.T) {
	type file struct {
		name string
		size int64
		gone []string
	}
	for name, tt := range map[string]struct {
		keep  Keep
		files []file
	}{
		"no bound":             {Keep{}, []file{{"a", 1 << 40, nil}, {"b", 1 << 40, nil}}},
		"a count":              {Keep{Count: 2}, []file{{"a", 1, nil}, {"b", 1, nil}, {"c", 1, []string{"a"}}, {"d", 1, []string{"b"}}}},
		"bytes":                {Keep{Bytes: 10}, []file{{"a", 4, nil}, {"b", 6, nil}, {"c", 7, []string{"a", "b"}}, {"d", 3, nil}}},
		"both":                 {Keep{Count: 2, Bytes: 10}, []file{{"a", 1, nil}, {"b", 1, nil}, {"c", 10, []string{"a", "b"}}, {"d", 0, nil}}},
		"a ring replaces":      {Keep{Count: 2}, []file{{"1", 5, nil}, {"2", 5, nil}, {"1", 5, nil}, {"2", 5, nil}}},
		"more than all of it":  {Keep{Bytes: 10}, []file{{"a", 11, []string{"a"}}, {"b", 5, nil}}},
		"a ring, and bytes":    {Keep{Count: 3, Bytes: 10}, []file{{"1", 5, nil}, {"2", 5, nil}, {"3", 5, []string{"1"}}, {"1", 5, []string{"2"}}}},
		"what it replaces too": {Keep{Bytes: 10}, []file{{"a", 5, nil}, {"b", 5, nil}, {"a", 5, nil}, {"c", 5, []string{"b"}}}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, f := range tt.files {
				require.Equal(t, f.gone, tt.keep.Add(f.name, f.size), "after %s", f.name)
			}
		})
	}
}

// Whatever the pattern, the names that it gives are known again, and others' are not.
func TestNamesAreKnownAgain(t *testing.T) {
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	files := []string{"cap.pcapng", "cap", "a+b.[x]", ".hidden", "100%%.pcapng"}
	for letter := range conversions {
		files = append(files, "x-%"+string(letter)+".pcapng")
	}
	for _, file := range files {
		p, err := NewPattern(file, 0)
		require.NoError(t, err)
		names := p.Names()
		for range 3 {
			name := p.Next(at)
			require.Regexp(t, names, name)
			require.NotRegexp(t, names, "other"+name)
			require.NotRegexp(t, names, name+"~")
		}
	}
	p, err := NewPattern("%H.pcapng", 0)
	require.NoError(t, err)
	p.Given("05.pcapng")
	require.Equal(t, "05_00002.pcapng", p.Next(at))
}
