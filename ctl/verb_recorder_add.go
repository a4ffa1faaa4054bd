package ctl

import (
	"context"
	"errors"
	"flag"
	"slices"
	"strconv"
	"strings"

	"github.com/sockd/sockd/families/model"
	"github.com/sockd/sockd/families/packet/filter/syntax"
)

type recorderAddIn struct {
	Name     *string           `json:"name,omitempty"`
	Source   string            `json:"source"`
	Filter   *string           `json:"filter,omitempty"`
	Settings *recorderSettings `json:"settings,omitempty"`
}

const recorderAddMethod = "io.sockd.Recorder.Add"

var _ = addMethod(unary(recorderAddMethod, serveRecorderAdd))

func serveRecorderAdd(ctx context.Context, r request, in recorderAddIn) (recorderOut, error) {
	if in.Name != nil && !model.ValidName(*in.Name) {
		return recorderOut{}, badName(*in.Name)
	}
	spec, err := r.recorderSpec(orZero(in.Settings))
	if err != nil {
		return recorderOut{}, err
	}
	spec.Name, spec.Source, spec.Filter = orZero(in.Name), in.Source, orZero(in.Filter)
	v, err := r.RecorderAdd(ctx, r.caller, spec)
	if err != nil {
		closePlaces(spec)
		return recorderOut{}, err
	}
	return recorderOut{v}, nil
}

// recorderFlags are the flags of recorder add. One letter means what it means to capture.
type recorderFlags struct {
	sources []string
	given   recorderSettings
	write   string
	dumpTo  string
}

func newRecorderFlags(fs *flag.FlagSet) *recorderFlags {
	f := &recorderFlags{}
	s := &f.given
	fs.Var(listValue{&f.sources}, "i", "record `SOURCE`; then the words are NAME, if it is one, and filter")
	fs.Func("last", "keep the packets of the last `D`", spanSetting(&s.Last))
	fs.Func("bytes", "keep them in so much memory, `SIZE` (256M with --last)", sizeSetting(&s.Bytes))
	fs.Func("w", "record to files instead, named after `FILE`", nameFlag(&f.write))
	fs.Func("C", "a new file before one is longer than `SIZE`; bare: millions of bytes", fileSizeSetting(&s.Size))
	fs.Func("G", "a new file at each multiple of `SECONDS`, by the clock", spanSetting(&s.Every))
	fs.Func("W", "keep `COUNT` files", countSetting(&s.Count, maxFiles))
	fs.Func("max-bytes", "keep all files together within `SIZE`", sizeSetting(&s.MaxBytes))
	fs.Func("s", "keep the first `SNAPLEN` bytes of each packet (262144)", countSetting(&s.Snaplen, maxSnaplen))
	fs.Func("Q", "only packets that go in, out or inout: `WAY`", f.setDirection)
	fs.BoolFunc("p", "leave out packets for other hosts", switchSetting(&s.NoPromisc))
	fs.Func("trigger", "dump by itself at a packet that `FILTER` takes", textSetting(&s.Trigger))
	fs.Func("on-drop", "dump by itself when `N` packets are lost within a second", countSetting(&s.OnDrop, 1<<62))
	fs.Func("after", "have what follows within `D` in such a dump, too", spanSetting(&s.After))
	fs.Func("dump-to", "name such dumps after `FILE`: %H and the like are the time, else they are numbered", nameFlag(&f.dumpTo))
	fs.BoolFunc("permanent", "keep it over a stop and a reboot", switchSetting(&s.Permanent))
	return f
}

func (f *recorderFlags) setDirection(s string) error {
	if !slices.Contains(directions, s) {
		return errors.New("want in, out or inout")
	}
	f.given.Direction = &s
	return nil
}

func nameFlag(to *string) func(string) error {
	return func(s string) error {
		if s == "" || s == "-" {
			return errors.New("want a file's name: sockd writes it, not this command")
		}
		*to = s
		return nil
	}
}

// spanSetting reads a D above 0.
func spanSetting(to **int64) func(string) error {
	return func(s string) error {
		d, err := model.ParseDuration(s)
		if err == nil && d <= 0 {
			err = errors.New("want a duration above 0")
		}
		if err != nil {
			return err
		}
		ns := int64(d)
		*to = &ns
		return nil
	}
}

func sizeSetting(to **int64) func(string) error {
	return func(s string) error {
		*to = new(int64)
		return sizeFlag(*to)(s)
	}
}

// fileSizeSetting reads -C: a bare number is millions, as in tcpdump.
func fileSizeSetting(to **int64) func(string) error {
	return func(s string) error {
		n, err := strconv.ParseInt(s, 10, 32)
		if err != nil || n < 1 {
			return sizeSetting(to)(s)
		}
		n *= 1_000_000
		*to = &n
		return nil
	}
}

func countSetting(to **int64, most int64) func(string) error {
	return func(s string) error {
		*to = new(int64)
		return countFlag(*to, 1, most)(s)
	}
}

func textSetting(to **string) func(string) error {
	return func(s string) error {
		*to = &s
		return nil
	}
}

func switchSetting(to **bool) func(string) error {
	return func(s string) error {
		on, err := strconv.ParseBool(s)
		if err != nil {
			return errors.New("takes no value")
		}
		*to = &on
		return nil
	}
}

const recorderAddLong = `Starts a recorder, which keeps the last packets of SOURCE until recorder dump asks for them, and prints its NAME; without one it is called r and its ID. SOURCE is as for capture: interfaces, patterns like 'veth*', any, with commas between. They need not be there yet. All words after it are the filter. A NAME that a recorder or relay has is exit 7.

The second word is taken for SOURCE, and the first one for NAME, unless a filter can begin with it (tcp, host, not, ...). With -i SOURCE there is no doubt.

In memory it keeps the last D with --last, or as much as fits SIZE with --bytes, or both: the oldest packets go. Without --bytes there are 256M; where that is too little for D, evicted_early in recorder show counts the packets that had to go before their time. Memory is taken as packets come, and given back when they are too old. While dumps are being written it may be a little more than twice as much. All recorders together may have half of the machine's memory. After a restart it starts empty.

With -w it records to files, which sockd writes as its own user, named and cut as by capture: FILE takes strftime(3), else a counter comes before its suffix; -C, -G, -W and --max-bytes bound them.

A trigger has it dump by itself: --trigger at a packet that a filter takes, --on-drop when so many packets were lost within a second. The dump goes to --dump-to FILE, has all that is held (of --last), and with --after what follows, and is told of by an event, dumped. Between two of them lies at least what one of them has, and ten seconds: triggers before are counted as suppressed.`

var _ = register(Verb{
	Name:  "recorder add",
	Group: GroupFlows,
	Args:  "[NAME] SOURCE [FILTER word]... (--last D | --bytes SIZE | -w FILE)",
	Short: "keep the last packets, to be asked for later",
	Long:  recorderAddLong,
	Examples: []string{
		"sockd-ctl recorder add black eth0 --last 60s     # the last minute of eth0",
		"sockd-ctl recorder add dns any udp port 53 --bytes 64M --permanent",
		"sockd-ctl recorder add eth0 --last 30s --on-drop 1000 --dump-to /var/tmp/loss-%H%M%S.pcapng",
		"sockd-ctl recorder add disk 'veth*' -w /var/tmp/veth.pcapng -C 100 -W 10",
	},
	Complete: []string{"iface", "iface", ""},
	Setup: func(fs *flag.FlagSet) Run {
		flags := newRecorderFlags(fs)
		return func(ctx context.Context, e *Env, args []string) error {
			in, err := flags.parameters(args)
			if err != nil {
				return err
			}
			return addRecorder(ctx, e, flags, in)
		}
	},
})

func addRecorder(ctx context.Context, e *Env, f *recorderFlags, in recorderAddIn) (err error) {
	var open places
	defer open.close()
	for _, p := range []struct {
		file string
		to   **recorderPlace
	}{{f.write, &f.given.File}, {f.dumpTo, &f.given.DumpTo}} {
		if p.file == "" {
			continue
		}
		if *p.to, err = open.open(p.file); err != nil {
			return err
		}
	}
	in.Settings = &f.given
	var out recorderOut
	if err := e.call(ctx, recorderAddMethod, in, &out, open.files...); err != nil {
		return err
	}
	return printObject(e, out.Recorder, printLine(out.Recorder.Name))
}

// parameters reads NAME, SOURCE and filter.
func (f *recorderFlags) parameters(args []string) (in recorderAddIn, err error) {
	if len(f.sources) > 0 {
		in.Source = strings.Join(f.sources, ",")
		if len(args) > 0 && model.ValidName(args[0]) && !beginsFilter(args[0]) {
			in.Name, args = &args[0], args[1:]
		}
	} else {
		if err := wantArgs("recorder add", args, 1, -1); err != nil {
			return in, err
		}
		if len(args) > 1 && !beginsFilter(args[1]) {
			if !model.ValidName(args[0]) {
				return in, badName(args[0])
			}
			in.Name, args = &args[0], args[1:]
		}
		in.Source, args = args[0], args[1:]
	}
	if filter := strings.Join(args, " "); filter != "" {
		in.Filter = &filter
	}
	return in, f.check()
}

// check finds flags that do not go together.
func (f *recorderFlags) check() error {
	g := f.given
	memory, cut := g.Last != nil || g.Bytes != nil, g.Size != nil || g.Every != nil || g.Count != nil || g.MaxBytes != nil
	trigger := g.Trigger != nil || g.OnDrop != nil
	why := ""
	switch {
	case !memory && f.write == "":
		return &UsageError{Verb: "recorder add", Why: "how much shall it keep?", Hint: "--last 30s, --bytes 64M or -w FILE"}
	case memory && f.write != "":
		why = "it is either in memory (--last, --bytes) or in files (-w)"
	case cut && f.write == "":
		why = "-C, -G, -W and --max-bytes are of files: -w FILE is missing"
	case trigger && f.dumpTo == "":
		why = "--dump-to FILE is missing: where a trigger dumps to"
	case !trigger && (f.dumpTo != "" || g.After != nil):
		why = "--dump-to and --after belong to --trigger or --on-drop"
	case trigger && f.write != "":
		why = "what is in files already is not dumped again"
	}
	if why != "" {
		return &UsageError{Verb: "recorder add", Why: why, Hint: "sockd-ctl recorder add --help"}
	}
	return nil
}

// beginsFilter tells whether a word is the beginning of a filter rather than NAME or SOURCE. What has a
// space or a comparison in it is no interface either.
func beginsFilter(word string) bool {
	return syntax.BeginsFilter(word) || strings.ContainsAny(word, " <>=()&|")
}
