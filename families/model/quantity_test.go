package model

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/sockd/sockd/families"
)

func TestParseDuration(t *testing.T) {
	for _, tt := range []struct {
		text string
		want time.Duration
	}{
		{"0", 0}, {"5", 5 * time.Second}, {"0.2", 200 * time.Millisecond}, {"500ms", 500 * time.Millisecond}, {"10s", 10 * time.Second},
		{"5m", 5 * time.Minute}, {"2h", 2 * time.Hour}, {"1d", 24 * time.Hour}, {"1h30m", 90 * time.Minute}, {"1.5h", 90 * time.Minute},
		{"none", NoLimit}, {"0.000000001s", 1}, {".5s", 500 * time.Millisecond}, {"0.125ms", 125 * time.Microsecond},
		{"9223372036.854775807", math.MaxInt64},
	} {
		got, err := ParseDuration(tt.text)
		require.NoError(t, err, tt.text)
		require.Equal(t, tt.want, got, tt.text)
	}
	for _, text := range []string{"", ".", "s", "-1", "1x", "1 s", "5m5", "1.2.3s", "1..s", "none ", "9223372036.854775808", "999999999999d", "0.0000000001s", "1e3", "１"} {
		d, err := ParseDuration(text)
		require.ErrorIs(t, err, families.ErrSyntax, text)
		require.Zero(t, d, text)
	}
}

func TestParseSize(t *testing.T) {
	for _, tt := range []struct {
		text string
		want int64
	}{
		{"0", 0}, {"1", 1}, {"1k", 1024}, {"1K", 1024}, {"1.5M", 3 << 19}, {"2G", 2 << 30}, {"1T", 1 << 40}, {"9223372036854775807", math.MaxInt64},
	} {
		got, err := ParseSize(tt.text)
		require.NoError(t, err, tt.text)
		require.Equal(t, tt.want, got, tt.text)
	}
	for _, text := range []string{"", "k", "-1", "1kk", "1 k", "0.5", "1.0001k", "9223372036854775808", "8388608T", "1P"} {
		n, err := ParseSize(text)
		require.ErrorIs(t, err, families.ErrSyntax, text)
		require.Zero(t, n, text)
	}
}

func FuzzDuration(f *testing.F) {
	for _, s := range []string{"none", "0", "1.5h", "1h30m", "0.000000001", "9223372036.854775807", "5m5"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDuration(s)
		if err != nil {
			require.Zero(t, d)
			return
		}
		again, err := ParseDuration(FormatDuration(d))
		require.NoError(t, err)
		require.Equal(t, d, again)
	})
}

func FuzzSize(f *testing.F) {
	for _, s := range []string{"0", "1.5M", "9223372036854775807", "1T", "1kk"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseSize(s)
		if err != nil {
			require.Zero(t, n)
			return
		}
		again, err := ParseSize(FormatSize(n))
		require.NoError(t, err)
		require.Equal(t, n, again)
	})
}
