package filter

import (
	"github.com/sockd/sockd/families/packet/filter/internal/code"
	"github.com/sockd/sockd/families/packet/filter/syntax"
)

// control is what LLC's control byte must be, under a mask.
type control struct{ mask, value uint32 }

// The bits that tell a frame of S format, and one of U format without its poll bit.
const maskS, maskU = 0x0f, 0xef

// llcTypes is what the words behind "llc" say (IEEE 802.2): the formats, and the
// frames of S and U format.
var llcTypes = map[string]control{
	"i":     {0x01, 0},
	"s":     {0x03, 0x01},
	"u":     {0x03, 0x03},
	"rr":    {maskS, 0x01},
	"rnr":   {maskS, 0x05},
	"rej":   {maskS, 0x09},
	"ui":    {maskU, 0x03},
	"ua":    {maskU, 0x63},
	"disc":  {maskU, 0x43},
	"dm":    {maskU, 0x0f},
	"sabme": {maskU, 0x6f},
	"test":  {maskU, 0xe3},
	"xid":   {maskU, 0xaf},
	"frmr":  {maskU, 0x87},
}

// llcTest lowers "llc" and "llc TYPE".
func (l *lowerer) llcTest(e *syntax.LLC, at place) cond {
	if at.framing != etherFraming && at.framing != geneveFraming {
		l.fail(e.Column(), "no LLC headers can be looked for in "+at.linkName(), "")
	}
	frame := all(
		not(l.compare(code.Greater, l.load(at.kind, 0, 2), maxLength)),
		not(l.compare(code.Equal, l.load(at.llc(), 0, 2), 0xffff)), // Novell's, without LLC
	)
	if e.Type == "" {
		return frame
	}
	want := llcTypes[e.Type]
	return all(frame, l.masked(l.load(at.llc(), 2, 1), want.mask, want.value))
}
