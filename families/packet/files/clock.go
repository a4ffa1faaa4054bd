package files

import (
	"sort"
	"time"
)

// Zone is an offset from UTC and the moment from which it holds.
type Zone struct {
	From   int64 // seconds since 1970
	Offset int   // seconds east of UTC
}

// maxZones bounds the changes that Zones looks ahead: two a year are 16 years.
const maxZones = 32

// Zones are the offset that loc has at t and its later changes, in order. From of the
// first is t.
func Zones(t time.Time, loc *time.Location) []Zone {
	t = t.In(loc)
	_, offset := t.Zone()
	zones := []Zone{{From: t.Unix(), Offset: offset}}
	for len(zones) < maxZones {
		_, end := t.ZoneBounds()
		if !end.After(t) { // the zero time, or a rule that package time cannot look behind
			break
		}
		t = end.In(loc)
		if _, changed := t.Zone(); changed != offset {
			offset = changed
			zones = append(zones, Zone{From: t.Unix(), Offset: offset})
		}
	}
	return zones
}

// day is what most clocks show in a row. One that is changed shows 23 or 25 hours.
const day = 24 * 60 * 60

// Clock divides the time into intervals that begin where a clock on the wall shows a
// multiple of Every since midnight. Intervals longer than a day are multiples since
// midnight of 1970-01-01.
//
// So an hour that the wall shows twice is two intervals, and the day on which it does
// so is one of 25 hours.
type Clock struct {
	Every time.Duration // whole seconds; 0: one interval without end
	Zones []Zone        // in order of From; none: UTC
}

// The borders of the interval of a Clock without Every.
const (
	beginning = -1 << 63
	forever   = 1<<63 - 1
)

// Interval is the interval in which t lies: begin <= t < end. All three are
// nanoseconds since 1970.
func (c Clock) Interval(t int64) (begin, end int64) {
	every := int64(c.Every / time.Second)
	if every <= 0 {
		return beginning, forever
	}
	second := floorDiv(t, 1e9)
	return c.before(second, every) * 1e9, c.after(second, every) * 1e9
}

// before is the latest border at or before a second.
func (c Clock) before(second, every int64) int64 {
	for {
		from, _, offset := c.zone(second)
		first, _ := bounds(second+offset, every)
		if first-offset >= from {
			return first - offset
		}
		second = from - 1
	}
}

// after is the earliest border after a second.
func (c Clock) after(second, every int64) int64 {
	for {
		_, until, offset := c.zone(second)
		_, last := bounds(second+offset, every)
		if last-offset < until {
			return last - offset
		}
		second = until
		_, _, offset = c.zone(second)
		if first, _ := bounds(second+offset, every); first == second+offset {
			return second
		}
	}
}

// bounds are the ends of an interval by the wall, in seconds since 1970 as if the wall
// showed UTC.
func bounds(wall, every int64) (first, last int64) {
	if every > day {
		first = floorDiv(wall, every) * every
		return first, first + every
	}
	midnight := floorDiv(wall, day) * day
	first = midnight + (wall-midnight)/every*every
	return first, min(first+every, midnight+day)
}

// The borders of time, in seconds, with room for offsets.
const (
	firstSecond = -1 << 40
	lastSecond  = 1 << 40
)

// zone is the offset that holds at a second, and from when until when it does.
func (c Clock) zone(second int64) (from, until, offset int64) {
	i := sort.Search(len(c.Zones), func(i int) bool { return c.Zones[i].From > second })
	from, until = firstSecond, lastSecond
	if i < len(c.Zones) {
		until = c.Zones[i].From
	}
	switch {
	case len(c.Zones) == 0:
		return from, until, 0
	case i == 0: // from before the first: it held then, too, as far as anybody knows
		return from, c.zoneEnd(1), int64(c.Zones[0].Offset)
	case i > 1:
		from = c.Zones[i-1].From
	}
	return from, until, int64(c.Zones[i-1].Offset)
}

func (c Clock) zoneEnd(i int) int64 {
	if i < len(c.Zones) {
		return c.Zones[i].From
	}
	return lastSecond
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}
