package syntax

import "fmt"

// bindings tells how strongly operations bind. Of one strength, the left one goes first.
var bindings = [...]int{
	BitOr: 1, BitAnd: 2, ShiftLeft: 3, ShiftRight: 3, Add: 4, Sub: 4, Mul: 5, Div: 5,
	Mod: greedy, BitXor: greedy,
}

const (
	unaryBinding = 6
	// greedy is of operations that libpcap's grammar gives no strength. Nothing to their left
	// binds stronger, and all to their right goes first: 1 + 2 % 3 + 4 is 1 + (2 % (3 + 4)).
	greedy = 7
)

// arithmetic reads a number that is computed.
func (p *parser) arithmetic() Arith { return p.operations(p.operand(), 0) }

// operations goes on behind x, with the operations that bind at least as strongly as least.
func (p *parser) operations(x Arith, least int) Arith {
	for p.tok.class == opTok && bindings[p.tok.val] >= least {
		op := ArithOp(p.advance().val)
		if bindings[op] == greedy {
			return p.greedy(x, op, least)
		}
		x = &Operation{ArithAt(x.Column()), op, x, p.right(bindings[op] + 1)}
	}
	return x
}

// greedy reads the right side of an operation that takes all. To the right of another
// operation it counts as if it were in parentheses, for it prints with them.
func (p *parser) greedy(x Arith, op ArithOp, least int) Arith {
	if least > 0 {
		p.enter()
		defer p.leave()
	}
	return &Operation{ArithAt(x.Column()), op, x, p.right(0)}
}

// right reads what stands to the right of an operation. A chain of greedy ones is
// as deep as it is long.
func (p *parser) right(least int) Arith {
	p.enter()
	defer p.leave()
	return p.operations(p.operand(), least)
}

// operand reads a number, "len", a load, or arithmetic in parentheses.
func (p *parser) operand() Arith {
	t := p.tok
	at := ArithAt(t.column)
	switch {
	case t.class == numberTok:
		p.advance()
		return &Constant{at, t.n}
	case t.class == lenTok:
		p.advance()
		return &FrameLen{at}
	case t.class == protoTok:
		p.advance()
		return p.load(t.column, Proto(t.val))
	case t.class == openTok:
		return p.group()
	case t.class == opTok && t.val == uint8(Sub):
		p.advance()
		return &Negate{at, p.right(unaryBinding)}
	}
	p.unexpected("a number, len, or bytes of a packet such as ip[0]")
	return nil
}

func (p *parser) group() Arith {
	open := p.advance().column
	p.enter()
	defer p.leave()
	x := p.arithmetic()
	if p.tok.class == endTok {
		p.close(open)
	}
	p.need(closeTok, `an operation or ")"`)
	return x
}

// load reads "[INDEX]" or "[INDEX:SIZE]" behind a protocol.
func (p *parser) load(column int, proto Proto) Arith {
	p.need(openIndexTok, fmt.Sprintf(`"[" and an offset behind %s`, protoNames[proto]))
	p.enter()
	defer p.leave()
	l := &Load{ArithAt: ArithAt(column), Proto: proto, Index: p.arithmetic(), Size: 1}
	if _, ok := p.take(colonTok); ok {
		t := p.need(numberTok, "1, 2 or 4 bytes")
		if t.n != 1 && t.n != 2 && t.n != 4 {
			p.fail(t.column, fmt.Sprintf("want 1, 2 or 4 bytes, not %d", t.n), "1, 2 or 4")
		}
		l.Size = int(t.n)
	}
	p.need(closeIndexTok, `an operation, ":" or "]"`)
	return l
}
