package ctltest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/pcapng"
)

// recorder is one in memory, with what it was asked for.
type recorder struct {
	model.Recorder
	spec model.RecorderSpec
}

func (b *Backend) recorderLocked(ref string) (*recorder, error) {
	for _, r := range b.recorders {
		if r.Name == ref || strconv.FormatInt(int64(r.ID), 10) == ref {
			return r, nil
		}
	}
	return nil, fmt.Errorf("recorder %q: %w", ref, families.ErrNotFound)
}

// RecorderAdd remembers a recorder, which has one packet.
func (b *Backend) RecorderAdd(_ context.Context, c model.Caller, spec model.RecorderSpec) (model.Recorder, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail != nil {
		return model.Recorder{}, b.fail
	}
	if _, err := b.recorderLocked(spec.Name); err == nil {
		return model.Recorder{}, fmt.Errorf("recorder add %q: %w", spec.Name, families.ErrBusy)
	}
	b.next++
	r := &recorder{spec: spec, Recorder: model.Recorder{
		ID: b.next, Name: spec.Name, Source: spec.Source, Filter: spec.Filter, State: model.RecorderRecording, Owner: c.Owner(),
		Last: spec.Last, LimitBytes: spec.Bytes, HeldPackets: 1, Oldest: recorded, Newest: recorded,
	}}
	if r.Name == "" {
		r.Name = fmt.Sprintf("r%d", r.ID)
	}
	b.own(spec.Trigger.To.Dir)
	if spec.Disk != nil {
		b.own(spec.Disk.To.Dir)
	}
	b.recorders = append(b.recorders, r)
	return r.Recorder, nil
}

// Recorded is what a recorder was asked for by RecorderAdd.
func (b *Backend) Recorded(name string) model.RecorderSpec {
	b.mu.Lock()
	defer b.mu.Unlock()
	r, err := b.recorderLocked(name)
	if err != nil {
		return model.RecorderSpec{}
	}
	return r.spec
}

// RecorderSet changes what is given.
func (b *Backend) RecorderSet(_ context.Context, _ model.Caller, ref string, change model.RecorderChange) (model.Recorder, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r, err := b.recorderLocked(ref)
	if err != nil {
		return model.Recorder{}, err
	}
	set(&r.Filter, change.Filter)
	set(&r.Last, change.Last)
	set(&r.LimitBytes, change.Bytes)
	return r.Recorder, b.fail
}

// RecorderRemove forgets a recorder.
func (b *Backend) RecorderRemove(_ context.Context, _ model.Caller, ref string) (model.Recorder, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r, err := b.recorderLocked(ref)
	if err != nil {
		return model.Recorder{}, err
	}
	b.recorders = slices.DeleteFunc(b.recorders, func(o *recorder) bool { return o == r })
	return r.Recorder, nil
}

// recorded is the time of the one packet.
var recorded = time.Date(2026, 11, 23, 8, 57, 0, 123456789, time.UTC)

// EndDumps makes dumps from now on end in the middle, with err.
func (b *Backend) EndDumps(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dumpEnd = err
}

// RecorderDump writes the one packet, or none when there is a filter.
func (b *Backend) RecorderDump(_ context.Context, _ model.Caller, ref string, spec model.DumpSpec, w io.Writer) (model.DumpReport, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r, err := b.recorderLocked(ref)
	if err != nil {
		return model.DumpReport{}, err
	}
	file := pcapng.AppendSection(nil, pcapng.Section{})
	file = pcapng.AppendInterface(file, pcapng.Interface{Link: pcapng.Ethernet, Name: r.Source})
	report := model.DumpReport{Oldest: recorded}
	if spec.Filter == "" {
		file = pcapng.AppendPacket(file, &pcapng.Packet{Time: recorded.UnixNano(), Data: make([]byte, 60), Len: 60})
		report.Packets, report.First, report.Last = 1, recorded, recorded
	}
	file = pcapng.AppendStats(file, pcapng.Stats{})
	report.Bytes = int64(len(file))
	if b.dumpEnd != nil {
		_, err = w.Write(file[:len(file)/2])
		return model.DumpReport{}, errors.Join(err, b.dumpEnd)
	}
	_, err = w.Write(file)
	return report, err
}
