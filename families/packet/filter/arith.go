package filter

import (
	"fmt"

	"github.com/sockd/sockd/families/packet/filter/internal/code"
	"github.com/sockd/sockd/families/packet/filter/syntax"
)

// amount is a number that is computed of a packet, and what the packet must be before that
// makes sense: tcp[13] needs TCP.
type amount struct {
	value *code.Value
	needs []cond
}

// relation lowers a comparison of two numbers. It is false of packets that lack a protocol it reads,
// whatever it compares with: "tcp[0] != 5" is of TCP alone.
func (l *lowerer) relation(e *syntax.Relation, at place) cond {
	x, y := l.arith(e.X, at), l.arith(e.Y, at)
	op, negated := comparison(e.Op)
	test := cond(func(yes, no *code.Node) *code.Node { return l.b.Test(op, x.value, y.value, yes, no) })
	if negated {
		test = not(test)
	}
	return all(all(x.needs...), all(y.needs...), test)
}

// comparison is how a relation is tested: as a test of BPF, or as what is not true of one.
func comparison(op syntax.RelOp) (test code.Compare, negated bool) {
	switch op {
	case syntax.NotEqual:
		return code.Equal, true
	case syntax.Greater:
		return code.Greater, false
	case syntax.GreaterEqual:
		return code.GreaterEqual, false
	case syntax.Less:
		return code.GreaterEqual, true
	case syntax.LessEqual:
		return code.Greater, true
	}
	return code.Equal, false
}

// arith lowers a number.
func (l *lowerer) arith(e syntax.Arith, at place) amount {
	switch e := e.(type) {
	case *syntax.Constant:
		return amount{value: l.b.Const(e.N)}
	case *syntax.FrameLen:
		return amount{value: l.b.Meta(code.Length)}
	case *syntax.Negate:
		x := l.arith(e.X, at)
		return amount{l.b.Compute(code.Sub, l.b.Const(0), x.value), x.needs}
	case *syntax.Operation:
		return l.operation(e, at)
	}
	return l.loaded(e.(*syntax.Load), at)
}

var operations = map[syntax.ArithOp]code.Op{
	syntax.Add:        code.Add,
	syntax.Sub:        code.Sub,
	syntax.Mul:        code.Mul,
	syntax.Div:        code.Div,
	syntax.Mod:        code.Mod,
	syntax.BitAnd:     code.And,
	syntax.BitOr:      code.Or,
	syntax.BitXor:     code.Xor,
	syntax.ShiftLeft:  code.ShiftLeft,
	syntax.ShiftRight: code.ShiftRight,
}

// operation lowers X op Y. What Y needs is not tested, as libpcap does not: its bytes are read
// from whatever packet passes the tests of X.
func (l *lowerer) operation(e *syntax.Operation, at place) amount {
	x, y := l.arith(e.X, at), l.arith(e.Y, at)
	l.checkOperand(e, x.value, y.value)
	return amount{l.b.Compute(operations[e.Op], x.value, y.value), x.needs}
}

// checkOperand refuses what has no result, whatever is in the packet. A shift that leaves nothing is
// refused where it is written so, or is of a packet's bytes; of a constant it is 0, as libpcap has it.
func (l *lowerer) checkOperand(e *syntax.Operation, x, y *code.Value) {
	k, known := y.Constant()
	if !known {
		return
	}
	_, ofConstant := x.Constant()
	_, literal := e.Y.(*syntax.Constant)
	switch {
	case k == 0 && e.Op == syntax.Div:
		l.fail(e.Y.Column(), "division by zero", "another divisor")
	case k == 0 && e.Op == syntax.Mod:
		l.fail(e.Y.Column(), "modulus by zero", "another divisor")
	case k > 31 && (e.Op == syntax.ShiftLeft || e.Op == syntax.ShiftRight) && (literal || !ofConstant):
		l.fail(e.Y.Column(), "shift by more than 31 bits", "a number up to 31")
	}
}

// loaded lowers bytes of a header: "tcp[13]", "ip[2:2]".
func (l *lowerer) loaded(e *syntax.Load, at place) amount {
	index := l.arith(e.Index, at)
	header, needs := l.header(e, at, index.needs)
	return amount{l.indexed(header, at, index.value, e.Size), needs}
}

// header is where the header of a protocol stands, and what a packet must be to have it, in the
// order that libpcap tests. index is what the index within it needs.
func (l *lowerer) header(e *syntax.Load, at place, index []cond) (offset, []cond) {
	switch e.Proto {
	case syntax.Link:
		return at.head, index
	case syntax.IP, syntax.ARP, syntax.RARP, syntax.ATalk, syntax.DECnet, syntax.SCA, syntax.LAT, syntax.MOPRC, syntax.MOPDL, syntax.IP6:
		return at.body, []cond{all(index...), l.protocolOf(e, e.Proto, at)}
	case syntax.SCTP, syntax.TCP, syntax.UDP, syntax.ICMP, syntax.IGMP, syntax.IGRP, syntax.PIM, syntax.VRRP, syntax.CARP:
		ip := l.protocolOf(e, syntax.IP, at)
		return offset{l.header4(at), at.body.k}, []cond{ip, all(index...), l.protocolOf(e, e.Proto, at), l.notFragment(at)}
	case syntax.ICMP6:
		next := l.compare(code.Equal, l.load(at.body, 6, 1), ipICMP6)
		return at.body.plus(40), []cond{all(index...), l.protocolOf(e, syntax.IP6, at), next}
	case syntax.Radio:
		l.fail(e.Column(), "there is no radio header in "+at.linkName(), "")
	}
	l.fail(e.Column(), fmt.Sprintf("the header of %s cannot be read by its bytes", &syntax.Protocol{Proto: e.Proto}), "ether or the name of a protocol in it or in IP")
	return offset{}, nil
}

// protocolOf is the name of a protocol alone.
func (l *lowerer) protocolOf(e *syntax.Load, p syntax.Proto, at place) cond {
	return l.protocolWord(&syntax.Protocol{At: syntax.At(e.Column()), Proto: p}, at)
}

// indexed reads size bytes of a header. Where that stands is known, ip[-1] is the byte before it, and
// tcp[-1] nothing, as libpcap has it since it folds constants into the offset. Behind a
// tunnel all is added up in a register, and the sum wraps around.
func (l *lowerer) indexed(header offset, at place, index *code.Value, size int) *code.Value {
	k, known := index.Constant()
	switch {
	case known && (at.body.base == nil || k < 1<<31):
		return l.load(header, k, size)
	case at.body.base != nil:
		header = l.behind(offset{base: header.base}, l.b.Const(header.k))
	}
	return l.load(l.behind(header, index), 0, size)
}
