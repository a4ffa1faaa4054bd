package ctl

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestDurationsAreReadAsInTheManual(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0":            0,
		"10":           10 * time.Second,
		"0.25":         250 * time.Millisecond,
		"500ms":        500 * time.Millisecond,
		"10s":          10 * time.Second,
		"5m":           5 * time.Minute,
		"2h":           2 * time.Hour,
		"1d":           24 * time.Hour,
		"1h30m":        90 * time.Minute,
		"1.5h":         90 * time.Minute,
		"0.000000001s": 1,
		"none":         NoLimit,
	} {
		got, err := ParseDuration(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
}

func TestWhatIsNoDurationIsAUsageError(t *testing.T) {
	for _, text := range []string{"", "x", "-1", "1x", "1s1", "1 s", "s", ".", "1.2.3", "1e3", "0.0000000001s", "300000d", "9223372036.9s", "None", "1sm"} {
		_, err := ParseDuration(text)
		var usage *UsageError
		require.ErrorAs(t, err, &usage, text)
	}
}

func TestSizesArePowersOf1024(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "1500": 1500, "64k": 65536, "64K": 65536, "1M": 1 << 20, "1.5G": 3 << 29, "1T": 1 << 40} {
		got, err := ParseSize(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "k", "-1", "1kB", "0.0001k", "1P", "9223372036854775808", "8388608T", "1 k"} {
		_, err := ParseSize(text)
		var usage *UsageError
		require.ErrorAs(t, err, &usage, text)
	}
}

func FuzzDurationPrintsWhatItParses(f *testing.F) {
	for _, s := range []string{"0", "1.5s", "90m", "none", "2h30m10s5ms", "0.000001", "12d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDuration(s)
		if err != nil {
			require.Zero(t, d)
			return
		}
		again, err := ParseDuration(FormatDuration(d))
		require.NoError(t, err, FormatDuration(d))
		require.Equal(t, d, again)
	})
}

func FuzzSizePrintsWhatItParses(f *testing.F) {
	for _, s := range []string{"0", "1", "1k", "1.5M", "3G", "1023", "7t"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseSize(s)
		if err != nil {
			require.Zero(t, n)
			return
		}
		again, err := ParseSize(FormatSize(n))
		require.NoError(t, err, FormatSize(n))
		require.Equal(t, n, again)
	})
}
