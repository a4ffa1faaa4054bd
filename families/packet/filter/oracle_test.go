package filter_test

import (
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sockd/sockd/families/packet/filter"
	"github.com/sockd/sockd/families/packet/filter/syntax"
	"github.com/stretchr/testify/require"
)

// The oracle: libpcap 1.10.3 by way of tcpdump says which texts are filters, and which
// frames they take. We say the same, but for what the table of differences has.

// seed makes another set of expressions, to hunt with: -args -oracle.seed N.
var seed = flag.Uint64("oracle.seed", oracleSeed, "what the oracle's expressions are made from")

const (
	oracleSeed        = 20261123
	oracleExpressions = 10_500 // of ours by the generator, over all link types
	oracleFrames      = 2400   // of Ethernet; of other link types fewer
	otherFrames       = 700
)

// oracleLinks are the link types by tcpdump's names. Most filters are for Ethernet.
var oracleLinks = map[string]filter.LinkType{
	"EN10MB": filter.Ethernet, "LINUX_SLL": filter.LinuxSLL, "LINUX_SLL2": filter.LinuxSLL2, "RAW": filter.Raw,
	"IPV4": filter.IPv4, "IPV6": filter.IPv6, "NULL": filter.Null, "LOOP": filter.Loop,
}

var otherLinks = []string{"LINUX_SLL", "LINUX_SLL2", "RAW", "IPV4", "IPV6", "NULL", "LOOP"}

// subject is a text for a link type, and what it is judged by.
type subject struct {
	link, text string
	frames     []oracleFrame
}

// difference is what libpcap and we do not agree on.
type difference struct {
	subject
	theirs, ours string       // what each says of the text, "" takes it
	frame        *oracleFrame // that only one of them takes; nil: it is about the text
	want         bool         // libpcap takes the frame
	which        string       // of our programs
	never        bool         // the side that takes the text takes none of the frames
	plainAgrees  bool         // libpcap takes it, too, when it does not optimise, and our verdicts are the same
}

func (d difference) String() string {
	if d.frame == nil {
		return fmt.Sprintf("%-10s %q\n\tlibpcap: %s\n\tours:    %s", d.link, d.text, orTakes(d.theirs), orTakes(d.ours))
	}
	return fmt.Sprintf("%-10s %q\n\tframe (%s, %d of %d bytes, out %v, interface %d): %s\n\tlibpcap takes it: %v; ours (%s): %v",
		d.link, d.text, d.frame.name, len(d.frame.data), d.frame.length, d.frame.out, d.frame.iface, hex.EncodeToString(d.frame.data),
		d.want, d.which, !d.want)
}

func orTakes(s string) string {
	if s == "" {
		return "takes it"
	}
	return s
}

// outcome is what came of a subject.
type outcome struct {
	subject
	taken      bool // by both
	mixed      bool // some frames match, and some do not
	scoped     bool // compared without Textual, too
	optimised  int  // frames on which libpcap's optimised and plain programs differ
	endless    int  // frames on which libpcap's program does not end, and which ours refuses
	difference *difference
	err        error // the oracle itself failed
}

// program is one of ours, with options, as a function of a frame.
func program(s subject, o filter.Options) (match func(*oracleFrame) bool, err error) {
	defer func() {
		if r := recover(); r != nil {
			stack := make([]byte, 4096)
			err = fmt.Errorf("panic: %v\n%s", r, stack[:runtime.Stack(stack, false)])
		}
	}()
	p, err := o.Compile(s.text, oracleLinks[s.link])
	if err != nil {
		return nil, err
	}
	return func(f *oracleFrame) bool {
		packet := filter.Packet{Data: f.data, Length: f.length, Interface: f.iface, Direction: filter.In}
		if f.out {
			packet.Direction = filter.Out
		}
		return p.MatchPacket(&packet)
	}, nil
}

// judge compares a subject.
func judge(s subject) (o outcome) {
	o.subject = s
	theirs, refused, err := tcpdumpCompile(s.link, s.text, false)
	if err != nil {
		o.err = err
		return o
	}
	ours, err := program(s, filter.Options{Textual: true})
	switch {
	case refused != "" && err != nil && !strings.Contains(err.Error(), "panic"):
		return o
	case refused != "" || err != nil:
		o.difference, o.err = apart(s, theirs, refused, ours, err)
		return o
	}
	o.taken = true
	o.compareFrames(theirs, ours)
	return o
}

// apart is the difference of a text that only one side takes.
func apart(s subject, theirs bpfProgram, refused string, ours func(*oracleFrame) bool, mistake error) (*difference, error) {
	d := &difference{subject: s, theirs: refused}
	if mistake != nil {
		d.ours = mistake.Error()
		n, err := count(s.frames, theirs.match)
		d.never = n == 0
		return d, err
	}
	n, err := count(s.frames, func(f *oracleFrame) (bool, error) { return ours(f), nil })
	d.never = n == 0
	if err != nil || !rejectsAll(refused) && !madeUp.MatchString(refused) {
		return d, err
	}
	plain, refused, err := tcpdumpCompile(s.link, s.text, true)
	if err != nil || refused != "" {
		return d, err
	}
	unlike, err := count(s.frames, func(f *oracleFrame) (bool, error) {
		want, err := plain.match(f)
		return want != ours(f), err
	})
	d.plainAgrees = unlike == 0
	return d, err
}

// rejectsAll tells whether an error, libpcap's or ours, is that no packet can pass.
func rejectsAll(why string) bool { return strings.Contains(why, "rejects all packets") }

func count(frames []oracleFrame, is func(*oracleFrame) (bool, error)) (n int, err error) {
	for i := range frames {
		yes, err := is(&frames[i])
		if err != nil && !errors.Is(err, errForever) {
			return n, err
		}
		n += one(yes)
	}
	return n, nil
}

// compareFrames runs all programs of a text.
func (o *outcome) compareFrames(theirs bpfProgram, ours func(*oracleFrame) bool) {
	others := o.others()
	plain := sync.OnceValues(func() (bpfProgram, error) {
		p, _, err := tcpdumpCompile(o.link, o.text, true)
		return p, err
	})
	matched := 0
	for i := range o.frames {
		f := &o.frames[i]
		want, err := theirs.match(f)
		got := ours(f)
		if errors.Is(err, errForever) && !got {
			o.endless, err = o.endless+1, nil
		}
		if err == nil && want != got {
			want, err = o.secondOpinion(plain, f, want, got)
		}
		if o.err = err; err != nil {
			return
		}
		if want != got {
			o.difference = &difference{subject: o.subject, frame: f, want: want, which: "textual"}
			return
		}
		if got {
			matched++
		}
		for name, other := range others {
			if other(f) != got {
				o.difference = &difference{subject: o.subject, frame: f, want: got, which: name}
				return
			}
		}
	}
	o.mixed = matched > 0 && matched < len(o.frames)
}

// secondOpinion is the verdict of libpcap's program that was not optimised, where the
// optimised one is not of our opinion: on frames that end too early its optimiser leaves
// out loads that would have refused them, and orders others anew.
func (o *outcome) secondOpinion(plain func() (bpfProgram, error), f *oracleFrame, want, got bool) (bool, error) {
	p, err := plain()
	if err != nil {
		return want, err
	}
	second, err := p.match(f)
	if err == nil && second == got {
		o.optimised++
		return second, nil
	}
	if errors.Is(err, errForever) && !got {
		o.endless++
		return false, nil
	}
	return want, err
}

// others are the further programs of ours that are to give the same verdicts.
func (o *outcome) others() map[string]func(*oracleFrame) bool {
	out := map[string]func(*oracleFrame) bool{}
	plain, err := program(o.subject, filter.Options{Textual: true, Plain: true})
	if err != nil {
		plain = nil
		o.difference = &difference{subject: o.subject, ours: "plain: " + err.Error()}
	} else {
		out["plain"] = plain
	}
	tree, err := syntax.Parse(o.text, syntax.Options{})
	if err != nil || tree != nil && !sameScope(tree, true) {
		return out
	}
	scoped, err := program(o.subject, filter.Options{})
	if err != nil {
		o.difference = &difference{subject: o.subject, ours: "scoped: " + err.Error()}
		return out
	}
	o.scoped = true
	out["scoped"] = scoped
	return out
}

// sameScope tells whether the headers that e takes off are taken off for all that stands
// to their right, which is where libpcap's way and ours are one. last: nothing stands to
// the right of e.
func sameScope(e syntax.Expr, last bool) bool {
	switch e := e.(type) {
	case *syntax.Not:
		return last && sameScope(e.X, true) || !takesOff(e.X)
	case *syntax.Binary:
		if e.Op == syntax.Or && takesOff(e.X) {
			return false
		}
		if e.Op == syntax.Or && takesOff(e.Y) && !last {
			return false
		}
		return sameScope(e.X, false) && sameScope(e.Y, last)
	}
	return true
}

// takesOff tells whether an expression has a header in it that holds others.
func takesOff(e syntax.Expr) bool {
	switch e := e.(type) {
	case *syntax.Not:
		return takesOff(e.X)
	case *syntax.Binary:
		return takesOff(e.X) || takesOff(e.Y)
	case *syntax.Encap:
		return e.Kind != syntax.PPPoED
	}
	return false
}

// judgeAll judges in parallel.
func judgeAll(subjects []subject) []outcome {
	out := make([]outcome, len(subjects))
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 2 * runtime.NumCPU() {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(subjects) {
					return
				}
				out[i] = judge(subjects[i])
			}
		})
	}
	wg.Wait()
	return out
}

// scaled is a number of things to try, a tenth of it in short tests.
func scaled(n int) int {
	if testing.Short() {
		return n / 10
	}
	return n
}

// allFrames are the frames of each link type.
func allFrames() map[string][]oracleFrame {
	out := map[string][]oracleFrame{"EN10MB": append(newBuilder(oracleSeed).frames("EN10MB", scaled(oracleFrames)), handMade()...)}
	for i, link := range otherLinks {
		out[link] = newBuilder(oracleSeed+uint64(i)).frames(link, scaled(otherFrames))
	}
	return out
}

// generated are n different texts, two in three for Ethernet.
func generated(seed uint64, n int, frames map[string][]oracleFrame) (out []subject) {
	s := newSpeaker(seed)
	seen := map[string]bool{}
	for len(out) < n {
		link := "EN10MB"
		if s.chance(33) {
			link = pick(s.r, otherLinks)
		}
		text := s.Text(link)
		if strings.IndexByte(text, 0) >= 0 || seen[text] {
			continue
		}
		seen[text] = true
		// Half of the frames each: all of them would take a minute longer.
		half := len(frames[link]) / 2
		from := len(out) % 2 * half
		out = append(out, subject{link, text, frames[link][from : from+half]})
	}
	return out
}

func TestOracleOfGeneratedExpressions(t *testing.T) {
	frames := allFrames()
	subjects := generated(*seed, scaled(oracleExpressions), frames)
	all := newBuilder(oracleSeed).frames("EN10MB", oracleFrames) // in short tests, too: an example needs its frame
	for _, e := range explained {
		if e.example != "" {
			subjects = append(subjects, subject{"EN10MB", e.example, all})
		}
	}
	report(t, judgeAll(subjects), true)
}

// TestOracleOfLibpcapsOwnExpressions reads lines of a link type, whether libpcap 1.10.3
// takes or refuses the expression, and the expression, with tabs between them.
func TestOracleOfLibpcapsOwnExpressions(t *testing.T) {
	frames := allFrames()
	text, err := os.ReadFile("testdata/libpcap.txt")
	require.NoError(t, err)
	var subjects []subject
	for line := range strings.Lines(string(text)) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), "\t", 3)
		subjects = append(subjects, subject{fields[0], fields[2], frames[fields[0]]})
	}
	report(t, judgeAll(subjects), false)
}

// TestOracleOfBroadcasts knows the mask, which tcpdump can only be told in other words.
func TestOracleOfBroadcasts(t *testing.T) {
	const other = "(ip[16:4] & 0xff = 0 or ip[16:4] & 0xff = 0xff)"
	frames := newBuilder(oracleSeed+200).frames("EN10MB", scaled(3000))
	for _, text := range []string{"ip broadcast", "not ip broadcast", "ip broadcast and udp", "ip multicast or ip broadcast", "broadcast and not ip broadcast"} {
		theirs, refused, err := tcpdumpCompile("EN10MB", strings.ReplaceAll(text, "ip broadcast", other), false)
		require.NoError(t, err)
		require.Empty(t, refused)
		ours, err := filter.Options{Netmask: 0xffffff00}.Compile(text, filter.Ethernet)
		require.NoError(t, err)
		matched, err := count(frames, func(f *oracleFrame) (bool, error) {
			want, err := theirs.match(f)
			require.Equal(t, want, ours.Match(f.data, f.length), "%s: %x", text, f.data)
			return want, err
		})
		require.NoError(t, err)
		require.NotZero(t, matched, text)
		require.Less(t, matched, len(frames), text)
	}
}

// report counts, and fails for what no class of the table explains.
func report(t *testing.T, outcomes []outcome, complete bool) {
	t.Helper()
	taken, mixed, scoped, classes := 0, 0, 0, map[string]int{}
	var open []difference
	for _, o := range outcomes {
		require.NoError(t, o.err, "the oracle itself, of %q for %s", o.text, o.link)
		taken, mixed, scoped = taken+one(o.taken), mixed+one(o.mixed), scoped+one(o.scoped)
		classes["optimiser"] += one(o.optimised > 0)
		classes["endless"] += one(o.endless > 0)
		switch class := explain(o.difference); {
		case o.difference == nil:
		case class == "":
			open = append(open, *o.difference)
		default:
			classes[class]++
			if testing.Verbose() && class == os.Getenv("ORACLE_CLASS") {
				t.Log(o.difference)
			}
		}
	}
	t.Logf("%d expressions, %d taken, of %d of these some frames match and some do not; %d compared in scope, too",
		len(outcomes), taken, mixed, scoped)
	for _, e := range explained {
		t.Logf("explained: %-28s %d", e.name, classes[e.name])
		if complete && classes[e.name] == 0 && (e.example != "" || !testing.Short()) {
			t.Errorf("the class %q was never met: the table is to be true", e.name)
		}
	}
	tell(t, open)
}

func one(b bool) int {
	if b {
		return 1
	}
	return 0
}

// tell shrinks the first differences, and fails the test with them.
func tell(t *testing.T, open []difference) {
	t.Helper()
	const most = 60 // a shrunk one takes about a hundred runs of tcpdump
	seen := map[string]bool{}
	for _, d := range open[:min(len(open), most)] {
		if text := shrink(d).String(); !seen[text] {
			seen[text] = true
			t.Error(text)
		}
	}
	if len(open) > 0 {
		t.Errorf("%d unexplained differences", len(open))
	}
}

// shrink finds a smaller text and frame that differ in the same way.
func shrink(d difference) difference {
	for smaller := true; smaller; {
		smaller = false
		for _, text := range shorter(d.text) {
			s := d.subject
			if s.text = text; d.frame != nil {
				s.frames = []oracleFrame{*d.frame}
			}
			if now := judge(s).difference; now != nil && explain(now) == "" && d.alike(*now) {
				d, smaller = *now, true
				break
			}
		}
	}
	return d.shrinkFrame()
}

// alike tells whether a difference is of the same kind as another: each side says what it said.
func (d difference) alike(o difference) bool {
	return (d.frame == nil) == (o.frame == nil) && (d.theirs == "") == (o.theirs == "") && (d.ours == "") == (o.ours == "") &&
		d.which == o.which && (d.theirs == "" || strings.Contains(d.theirs, "syntax") == strings.Contains(o.theirs, "syntax"))
}

// shorter are texts without one or some of the words of another.
func shorter(text string) (out []string) {
	spaced := text
	for _, p := range []string{"(", ")", "[", "]", ":"} {
		if !strings.Contains(text, "::") || p != ":" {
			spaced = strings.ReplaceAll(spaced, p, " "+p+" ")
		}
	}
	words := strings.Fields(spaced)
	for n := len(words) - 1; n > 0; n-- {
		for i := 0; i+n <= len(words); i++ {
			out = append(out, strings.Join(append(slices.Clone(words[:i]), words[i+n:]...), " "))
		}
	}
	return out
}

// shrinkFrame cuts the frame, and zeroes what does not matter of it.
func (d difference) shrinkFrame() difference {
	if d.frame == nil {
		return d
	}
	try := func(data []byte) bool {
		s := d.subject
		f := *d.frame
		f.data, f.length = data, max(f.length, len(data))
		s.frames = []oracleFrame{f}
		now := judge(s).difference
		if now == nil || explain(now) != "" || now.frame == nil {
			return false
		}
		d = *now
		return true
	}
	for n := len(d.frame.data) / 2; n > 0; {
		if len(d.frame.data) <= n || !try(d.frame.data[:len(d.frame.data)-n]) {
			n /= 2
		}
	}
	for i := range d.frame.data {
		if d.frame.data[i] != 0 {
			data := slices.Clone(d.frame.data)
			data[i] = 0
			try(data)
		}
	}
	return d
}
