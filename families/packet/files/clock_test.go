package files

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func mustLocation(tb testing.TB, name string) *time.Location {
	tb.Helper()
	loc, err := time.LoadLocation(name)
	require.NoError(tb, err)
	return loc
}

func TestIntervalsBeginWhereTheClockOnTheWallSaysSo(t *testing.T) {
	const layout = "2006-01-02 15:04:05 -0700"
	for name, tt := range map[string]struct {
		zone            string
		every           time.Duration
		at, begin, end_ string
	}{
		"an hour":                            {"UTC", time.Hour, "2026-11-23 08:57:24 +0000", "2026-11-23 08:00:00 +0000", "2026-11-23 09:00:00 +0000"},
		"its first second":                   {"UTC", time.Hour, "2026-11-23 08:00:00 +0000", "2026-11-23 08:00:00 +0000", "2026-11-23 09:00:00 +0000"},
		"the last one of a day":              {"UTC", time.Hour, "2026-12-31 23:59:59 +0000", "2026-12-31 23:00:00 +0000", "2027-01-01 00:00:00 +0000"},
		"a day":                              {"Europe/Berlin", 24 * time.Hour, "2026-11-23 00:30:00 +0100", "2026-11-23 00:00:00 +0100", "2026-11-24 00:00:00 +0100"},
		"a leap day":                         {"UTC", 24 * time.Hour, "2028-02-29 23:00:00 +0000", "2028-02-29 00:00:00 +0000", "2028-03-01 00:00:00 +0000"},
		"what does not divide a day":         {"UTC", 7 * time.Hour, "2026-11-23 22:00:00 +0000", "2026-11-23 21:00:00 +0000", "2026-11-24 00:00:00 +0000"},
		"two days":                           {"UTC", 48 * time.Hour, "1970-01-04 10:00:00 +0000", "1970-01-03 00:00:00 +0000", "1970-01-05 00:00:00 +0000"},
		"half an hour east":                  {"Asia/Kolkata", time.Hour, "2026-11-23 08:57:24 +0530", "2026-11-23 08:00:00 +0530", "2026-11-23 09:00:00 +0530"},
		"before 1970":                        {"UTC", time.Hour, "1969-12-31 23:59:59 +0000", "1969-12-31 23:00:00 +0000", "1970-01-01 00:00:00 +0000"},
		"the day of 23 hours":                {"Europe/Berlin", 24 * time.Hour, "2027-03-28 12:00:00 +0200", "2027-03-28 00:00:00 +0100", "2027-03-29 00:00:00 +0200"},
		"the day of 23 hours, early":         {"Europe/Berlin", 24 * time.Hour, "2027-03-28 01:00:00 +0100", "2027-03-28 00:00:00 +0100", "2027-03-29 00:00:00 +0200"},
		"the day of 25 hours":                {"Europe/Berlin", 24 * time.Hour, "2027-10-31 12:00:00 +0100", "2027-10-31 00:00:00 +0200", "2027-11-01 00:00:00 +0100"},
		"the hour before one is left out":    {"Europe/Berlin", time.Hour, "2027-03-28 01:30:00 +0100", "2027-03-28 01:00:00 +0100", "2027-03-28 03:00:00 +0200"},
		"the first of the hours shown twice": {"Europe/Berlin", time.Hour, "2027-10-31 02:30:00 +0200", "2027-10-31 02:00:00 +0200", "2027-10-31 02:00:00 +0100"},
		"the second of them":                 {"Europe/Berlin", time.Hour, "2027-10-31 02:30:00 +0100", "2027-10-31 02:00:00 +0100", "2027-10-31 03:00:00 +0100"},
		"two hours, one of them left out":    {"Europe/Berlin", 2 * time.Hour, "2027-03-28 03:30:00 +0200", "2027-03-28 00:00:00 +0100", "2027-03-28 04:00:00 +0200"},
		"a change by half an hour":           {"Australia/Lord_Howe", time.Hour, "2027-04-04 01:45:00 +1030", "2027-04-04 01:00:00 +1100", "2027-04-04 02:00:00 +1030"},
	} {
		t.Run(name, func(t *testing.T) {
			at, err := time.Parse(layout, tt.at)
			require.NoError(t, err)
			loc := mustLocation(t, tt.zone)
			c := Clock{Every: tt.every, Zones: Zones(at.AddDate(0, 0, -200), loc)}
			begin, end := c.Interval(at.UnixNano())
			require.Equal(t, tt.begin, time.Unix(0, begin).In(loc).Format(layout))
			require.Equal(t, tt.end_, time.Unix(0, end).In(loc).Format(layout))
		})
	}
}

func TestAClockWithoutEveryHasOneInterval(t *testing.T) {
	begin, end := Clock{}.Interval(time.Now().UnixNano())
	require.Equal(t, []int64{beginning, forever}, []int64{begin, end})
}

// Whatever the zone and the length: an interval holds the moment that was asked for,
// every moment in it has the same one, and the next follows without a gap.
func TestIntervalsCoverTheTimeWithoutGaps(t *testing.T) {
	for _, zone := range []string{"UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Asia/Kolkata", "Africa/Casablanca", "Antarctica/Troll"} {
		for _, every := range []time.Duration{time.Second, 90 * time.Second, time.Hour, 5 * time.Hour, 24 * time.Hour, 72 * time.Hour} {
			c := Clock{Every: every, Zones: Zones(time.Unix(1_790_000_000, 0), mustLocation(t, zone))}
			for at := int64(1_790_000_000); at < 1_830_000_000; at += 333_333 {
				begin, end := c.Interval(at*1e9 + 5)
				require.LessOrEqual(t, begin, at*1e9)
				require.Greater(t, end, at*1e9)
				for _, other := range []int64{begin, (begin + end) / 2, end - 1} {
					b, e := c.Interval(other)
					require.Equal(t, []int64{begin, end}, []int64{b, e}, "%s %s: the interval of %d and that of %d in it", zone, every, at, other)
				}
				next, _ := c.Interval(end)
				require.Equal(t, end, next)
			}
		}
	}
}

func TestZonesAreTheOffsetOfNowAndTheChangesToCome(t *testing.T) {
	at := time.Unix(1_790_000_000, 0)
	require.Equal(t, []Zone{{1_790_000_000, 0}}, Zones(at, time.UTC))
	berlin := Zones(at, mustLocation(t, "Europe/Berlin"))
	require.Greater(t, len(berlin), 20, "ten years and more")
	require.Equal(t, []Zone{{1_790_000_000, 7200}, {1_792_890_000, 3600}, {1_806_195_600, 7200}}, berlin[:3])
}
