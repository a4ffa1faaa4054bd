package filter_test

import (
	"encoding/binary"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/sockd/sockd/families/packet/filter/syntax"
	"github.com/stretchr/testify/require"
)

// explained are the differences from libpcap 1.10.3 that we mean. docs/filter.md has a
// row for each.
var explained = []struct {
	name    string
	example string // that is judged in any case, on Ethernet; where there is none the generator finds some
	reason  string
	is      func(*difference) bool
}{
	{
		"vxlan", `vxlan 7 and ip`, "the word is newer than 1.10.3",
		func(d *difference) bool {
			return d.theirs != "" && d.ours == "" && strings.Contains(d.text, "vxlan")
		},
	},
	{
		"ip broadcast", `ip broadcast`, "without the mask of a network nobody knows its broadcast address; tcpdump -y takes 0 for one",
		func(d *difference) bool {
			return d.theirs == "" && strings.Contains(d.ours, "mask") && strings.Contains(d.text, "broadcast")
		},
	},
	{
		"contradictions", `proto 256`, "we find more of the filters that no packet can pass",
		func(d *difference) bool { return d.theirs == "" && rejectsAll(d.ours) && d.never },
	},
	{
		"mask of ones", `ether[1] & 0xffffffff == 0`, "libpcap's optimiser takes X & 0xffffffff != 0 for true; its plain program does as ours",
		func(d *difference) bool { return rejectsAll(d.theirs) && d.ours == "" && d.plainAgrees },
	},
	{
		"optimiser", ``, "libpcap's optimised program leaves out a load beyond the end of a frame; its plain program does as ours",
		func(*difference) bool { return false }, // found by secondOpinion
	},
	{
		"endless", ``, "libpcap's protochain does not end on some AH headers; ours refuses the frame",
		func(*difference) bool { return false }, // found by compareFrames
	},
	{
		"families of IPv6", ``, "libpcap looks for the system's own number of a live interface; a file may be of another system",
		func(d *difference) bool { return d.frame != nil && foreignIPv6(d.link, d.frame.data) },
	},
	{
		"geneve elsewhere", `geneve or ip6`, "to the right of geneve libpcap computes with what the program met, also where geneve was false; we only keep to the scope",
		func(d *difference) bool { return contains(d.text, "geneve") && !sameScopeText(d.text) },
	},
	{
		"labels before a tunnel", `mpls and geneve and vlan`, "to libpcap what a tunnel holds is still behind the MPLS labels before it",
		func(d *difference) bool { return d.ours == "" && tunnelInMPLS.MatchString(d.text) },
	},
	{
		"direction behind headers", `pppoes or inbound`, "libpcap adds the offset of an inner header to the kernel's number of the packet's type, and reads something else",
		func(d *difference) bool { return d.frame != nil && metaBehind.MatchString(d.text) },
	},
	{
		"port ranges", `portrange 1-2-3`, "libpcap does not look at what is behind the second port",
		func(d *difference) bool { return d.theirs == "" && rangeTail.MatchString(d.text) },
	},
	{
		"first numbers", `6 / ether[0] > 12`, "libpcap takes the first number on the right of a division or a shift for all of it",
		func(d *difference) bool {
			return madeUp.MatchString(d.theirs) && d.ours == "" && firstNumber(d.text)
		},
	},
	{
		"dead arithmetic", `(dst 10.0.0.1 or 13 % (132 / 0xffff) = icmp[13]) and port 5353`, "libpcap drops what no packet gets to, and with it a division by zero that is an error when it stands alone",
		func(d *difference) bool {
			return d.theirs == "" && madeUp.MatchString(d.ours) && refusedAlone(d.subject)
		},
	},
	{
		"not optimised", `protochain 51 or net 2001:db8::/48`,
		"libpcap does not optimise programs with a protochain or a tunnel: it loads what a net does not ask for, and computes offsets that wrap around",
		func(d *difference) bool { return d.frame != nil && !d.want && notOptimised(d) },
	},
	{
		"DECnet addresses", `decnet host 64.120`, "libpcap cuts the area and the node of an address that has no such ones",
		func(d *difference) bool { return d.theirs == "" && strings.Contains(d.ours, "is no DECnet address") },
	},
	{
		"byte masks", `byte 14 & 4`, "libpcap forgets to load the byte",
		func(d *difference) bool {
			return byteMask.MatchString(d.text) && (d.frame != nil || rejectsAll(d.ours) || rejectsAll(d.theirs))
		},
	},
	{
		"limits", strings.Repeat("not ", 201) + "tcp", "libpcap bounds neither the depth of a text nor the length of a program",
		func(d *difference) bool { return d.theirs == "" && beyond.MatchString(d.ours) },
	},
	{
		"VLAN in Geneve", `geneve and vlan and ip`, "behind a tag that Geneve holds without Ethernet libpcap looks for the type in Geneve's own header",
		func(d *difference) bool {
			return d.frame != nil && vlanInGeneve.MatchString(d.text) && tagInGeneve(d.frame.data)
		},
	},
}

var (
	vlanInGeneve = regexp.MustCompile(`(?s)geneve.*vlan`)
	tunnelInMPLS = regexp.MustCompile(`(?s)\bmpls\b.*\bgeneve\b`)
	metaBehind   = regexp.MustCompile(`(?s)\b(pppoes|geneve)\b.*\b(inbound|outbound|ifindex)\b`)
	byteMask     = regexp.MustCompile(`byte\s*\S+\s*[&|]`)
	beyond       = regexp.MustCompile(`more than 200 levels deep|longer than 65536 bytes|compiles to more instructions`)
	rangeTail    = regexp.MustCompile(`\b\d+-\d+-`)
	madeUp       = regexp.MustCompile(`(division|modulus) by zero|shift by more than 31 bits`)
)

// foreignIPv6 tells whether a frame of BSD's loopback has the number that NetBSD,
// FreeBSD or macOS has for IPv6.
func foreignIPv6(link string, data []byte) bool {
	if len(data) < 4 || link != "NULL" && link != "LOOP" {
		return false
	}
	family := wire.Uint32(data)
	if link == "NULL" {
		family = binary.NativeEndian.Uint32(data)
	}
	return family == 24 || family == 28 || family == 30
}

// firstNumber tells whether a division or a shift in a text has something computed on its
// right, and the first number of that would be wrong if it stood there alone.
func firstNumber(text string) (found bool) {
	tree, err := syntax.Parse(text, syntax.Options{})
	if err != nil || tree == nil {
		return false
	}
	walk(reflect.ValueOf(tree), func(part any) {
		if o, ok := part.(*syntax.Operation); ok {
			found = found || wrongAlone(o)
		}
	})
	return found
}

// walk calls f with each part of a tree.
func walk(v reflect.Value, f func(part any)) {
	if !v.IsValid() || !v.CanInterface() {
		return
	}
	if v.Kind() == reflect.Pointer {
		f(v.Interface())
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		walk(v.Elem(), f)
	case reflect.Struct:
		for i := range v.NumField() {
			walk(v.Field(i), f)
		}
	}
}

// refusedAlone tells whether libpcap, too, refuses an operation of the text when that
// stands alone.
func refusedAlone(s subject) (found bool) {
	tree, err := syntax.Parse(s.text, syntax.Options{})
	if err != nil || tree == nil {
		return false
	}
	walk(reflect.ValueOf(tree), func(part any) {
		if o, ok := part.(*syntax.Operation); ok && !found {
			_, refused, err := tcpdumpCompile(s.link, o.String()+" = 1", false)
			found = err == nil && madeUp.MatchString(refused)
		}
	})
	return found
}

// notOptimised tells whether libpcap leaves the text as it is, and there is a net and a frame that
// is cut, or an offset that is computed or below 0.
func notOptimised(d *difference) bool {
	tree, err := syntax.Parse(d.text, syntax.Options{})
	if err != nil || tree == nil {
		return false
	}
	plain, net, offset := false, false, false
	walk(reflect.ValueOf(tree), func(part any) {
		switch e := part.(type) {
		case *syntax.Match:
			plain = plain || e.Kind == syntax.ProtoChain
			net = net || e.Kind == syntax.Net
		case *syntax.Encap:
			plain = plain || e.Kind == syntax.Geneve
		case *syntax.Load:
			c, constant := e.Index.(*syntax.Constant)
			offset = offset || !constant || c.N > 0xffff
		}
	})
	return plain && (offset || net && len(d.frame.data) < d.frame.length)
}

func wrongAlone(o *syntax.Operation) bool {
	if _, alone := o.Y.(*syntax.Constant); alone {
		return false
	}
	n := first(o.Y)
	switch o.Op {
	case syntax.Div, syntax.Mod:
		return n == 0
	case syntax.ShiftLeft, syntax.ShiftRight:
		return n > 31
	}
	return false
}

// first is the first number that libpcap's code for a computation has; 1, which is never wrong, for "len".
func first(a syntax.Arith) uint32 {
	switch a := a.(type) {
	case *syntax.Constant:
		return a.N
	case *syntax.Load:
		return first(a.Index)
	case *syntax.Negate:
		return first(a.X)
	case *syntax.Operation:
		return first(a.X)
	}
	return 1
}

// contains tells whether words are in a text in that order.
func contains(text string, words ...string) bool {
	for _, w := range words {
		i := strings.Index(text, w)
		if i < 0 {
			return false
		}
		text = text[i+len(w):]
	}
	return true
}

func sameScopeText(text string) bool {
	tree, err := syntax.Parse(text, syntax.Options{})
	return err == nil && (tree == nil || sameScope(tree, true))
}

// explain is the name of the first class that a difference is of, "" for none.
func explain(d *difference) string {
	if d == nil {
		return ""
	}
	for _, e := range explained {
		if e.is(d) {
			return e.name
		}
	}
	return ""
}

// TestTheDocumentedDifferencesAreTheExplainedOnes: the table of docs/filter.md has a row for
// each class, and no others but for those that are no differences of verdicts of one text.
func TestTheDocumentedDifferencesAreTheExplainedOnes(t *testing.T) {
	text, err := os.ReadFile("../../../docs/filter.md")
	require.NoError(t, err)
	_, table, found := strings.Cut(string(text), "\n| name | libpcap | here | why |\n|---|---|---|---|\n")
	require.True(t, found)
	var documented, known []string
	for row := range strings.Lines(table) {
		if name, _, _ := strings.Cut(strings.TrimPrefix(row, "| "), " |"); name != "scope" && name != "columns" {
			documented = append(documented, name)
		}
	}
	for _, e := range explained {
		known = append(known, e.name)
	}
	require.ElementsMatch(t, known, documented)
}
