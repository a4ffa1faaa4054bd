package code

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"

	"golang.org/x/net/bpf"
)

// Style is how a program is printed.
type Style uint8

// The styles, those of tcpdump's options -d, -dd and -ddd.
const (
	Text    Style = iota // in words
	C                    // as lines of an array in C
	Decimal              // as numbers, how many lines there are first
)

// ErrNotClassic is of a program that cannot be listed in the bits of classic BPF: it asks
// for owners, or computes with the direction.
var ErrNotClassic = errors.New("filter: owners of packets have no instruction in classic BPF")

// List prints the program, byte for byte as tcpdump prints one with the same instructions.
// Jumps that lead too far for classic BPF lead to a ja. A protochain leads backwards, which the
// kernel refuses, but libpcap does not. Owners are asked by words of our own, and only in Text;
// in the other styles they are ErrNotClassic.
func (p *Program) List(w io.Writer, s Style) error {
	if s != Text && slices.ContainsFunc(p.code, insn.ours) {
		return ErrNotClassic
	}
	code := p.classic()
	out := bufio.NewWriter(w)
	if s == Decimal {
		fmt.Fprintln(out, len(code))
	}
	for n, i := range code {
		switch s {
		case Text:
			fmt.Fprintln(out, p.image(n, i))
		case C:
			fmt.Fprintf(out, "{ 0x%x, %d, %d, 0x%08x },\n", i.Op, i.Jt, i.Jf, i.K)
		default:
			fmt.Fprintln(out, i.Op, i.Jt, i.Jf, i.K)
		}
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("list the program: %w", err)
	}
	return nil
}

// classic is the program in the bits of classic BPF.
func (p *Program) classic() []bpf.RawInstruction {
	a := &assembly{}
	at := a.newLabels(len(p.code))
	for i, c := range p.code {
		a.place(at[i])
		s := step{op: c.op, k: c.k}
		switch {
		case c.conditional():
			s.yes, s.no = at[i+1+int(c.jt)], at[i+1+int(c.jf)]
		case c.op == opJump:
			s.yes = at[i+1+int(int32(c.k))]
		case c.op == opPacketType:
			s = step{op: opLoadHalf, k: extType}
		case c.op == opInterface:
			s = step{op: opLoadWord, k: extInterface}
		}
		a.put(s)
	}
	return a.encode()
}

// How the operands are printed.
const (
	absolute  = "[%d]"
	indexed   = "[x + %d]"
	hex       = "#0x%x"
	decimal   = "#%d"
	inMemory  = "M[%d]"
	headerLen = "4*([%d]&0xf)"
	theLength = "#pktlen"
	theX      = "x"
	none      = ""
)

// images are the words of the instructions: the name, and how the operand is printed.
var images = map[uint16][2]string{
	opImm: {"ld", hex}, opLoadWord: {"ld", absolute}, opLoadHalf: {"ldh", absolute}, opLoadByte: {"ldb", absolute},
	opLoadWordX: {"ld", indexed}, opLoadHalfX: {"ldh", indexed}, opLoadByteX: {"ldb", indexed},
	opLoadMem: {"ld", inMemory}, opLoadLen: {"ld", theLength}, opDirection: {"ld", "[dir]"},
	opImmX: {"ldx", hex}, opLoadXMem: {"ldx", inMemory}, opLoadXHeader: {"ldxb", headerLen},
	opStore: {"st", inMemory}, opReturn: {"ret", decimal}, opTax: {"tax", none}, opTxa: {"txa", none},
	opAdd: {"add", decimal}, opSub: {"sub", decimal}, opMul: {"mul", decimal}, opDiv: {"div", decimal}, opMod: {"mod", decimal},
	opOr: {"or", hex}, opAnd: {"and", hex}, opXor: {"xor", hex}, opShiftLeft: {"lsh", decimal}, opShiftRight: {"rsh", decimal},
	opAdd + byX: {"add", theX}, opSub + byX: {"sub", theX}, opMul + byX: {"mul", theX}, opDiv + byX: {"div", theX}, opMod + byX: {"mod", theX},
	opOr + byX: {"or", theX}, opAnd + byX: {"and", theX}, opXor + byX: {"xor", theX}, opShiftLeft + byX: {"lsh", theX}, opShiftRight + byX: {"rsh", theX},
	opJumpEqual: {"jeq", hex}, opJumpGreater: {"jgt", hex}, opJumpAtLeast: {"jge", hex}, opJumpAnyBitSet: {"jset", hex},
	opJumpEqual + byX: {"jeq", theX}, opJumpGreater + byX: {"jgt", theX}, opJumpAtLeast + byX: {"jge", theX}, opJumpAnyBitSet + byX: {"jset", theX},
}

// extensions are the loads that are printed by a word.
var extensions = map[uint32]string{extType: "[type]", extInterface: "[ifidx]"}

// image is the line of instruction n.
func (p *Program) image(n int, i bpf.RawInstruction) string {
	words := images[i.Op]
	name, operand := words[0], words[1]
	switch {
	case i.Op == opJump:
		name, operand = "ja", strconv.Itoa(n+1+int(int32(i.K)))
	case i.Op == opOwner:
		name, operand = p.owners[i.K].image()
	case operand == absolute && extensions[i.K] != "":
		operand = extensions[i.K]
	case operand == hex:
		operand = fmt.Sprintf(operand, i.K)
	case operand != theLength && operand != theX && operand != none && i.Op != opDirection:
		operand = fmt.Sprintf(operand, int32(i.K))
	}
	if (insn{op: i.Op}).conditional() {
		return fmt.Sprintf("(%03d) %-8s %-16s jt %d\tjf %d", n, name, operand, n+1+int(i.Jt), n+1+int(i.Jf))
	}
	return fmt.Sprintf("(%03d) %-8s %s", n, name, operand)
}

// image is an owner test's name and operand.
func (t *ownerTest) image() (name, operand string) {
	switch t.field {
	case UID:
		return "uid", fmt.Sprintf(decimal, int64(t.n))
	case PID:
		return "pid", fmt.Sprintf(decimal, int64(t.n))
	case Comm:
		return "comm", strconv.Quote(t.text)
	}
	return "unit", strconv.Quote(t.text)
}
