package filter

import (
	"fmt"

	"github.com/sockd/sockd/families/packet/filter/internal/code"
	"github.com/sockd/sockd/families/packet/filter/syntax"
)

// lengthTest lowers "less" and "greater".
func (l *lowerer) lengthTest(e *syntax.Length) cond {
	length := l.b.Meta(code.Length)
	if e.Greater {
		return l.compare(code.GreaterEqual, length, e.N)
	}
	return not(l.compare(code.Greater, length, e.N))
}

// byteTest lowers "byte OFFSET OP N", of the link layer's header.
func (l *lowerer) byteTest(e *syntax.Byte, at place) cond {
	b := l.load(at.head, e.Offset, 1)
	switch e.Op {
	case syntax.ByteLess:
		return not(l.compare(code.GreaterEqual, b, e.N))
	case syntax.ByteGreater:
		return l.compare(code.Greater, b, e.N)
	case syntax.ByteAnd:
		return l.compare(code.Set, b, e.N)
	case syntax.ByteOr:
		return not(l.compare(code.Equal, l.b.Compute(code.Or, b, l.b.Const(e.N)), 0))
	}
	return l.compare(code.Equal, b, e.N)
}

// cookedOutgoing is the packet type of Linux cooked headers for what the machine sent itself.
const cookedOutgoing = 4

// direction lowers "inbound" and "outbound". Cooked headers have it in the packet, with no
// word for not known, so there all is inbound that is not outbound. It belongs to
// the frame as a whole: behind a tunnel it is the same.
func (l *lowerer) direction(e *syntax.Direction) cond {
	var outgoing cond
	switch l.link {
	case LinuxSLL:
		outgoing = l.compare(code.Equal, l.b.Load(nil, 0, 2), cookedOutgoing)
	case LinuxSLL2:
		outgoing = l.compare(code.Equal, l.b.Load(nil, 10, 1), cookedOutgoing)
	default:
		return l.compare(code.Equal, l.b.Meta(code.Direction), directionNumber(e.Outbound))
	}
	if e.Outbound {
		return outgoing
	}
	return not(outgoing)
}

func directionNumber(outbound bool) uint32 {
	if outbound {
		return code.DirectionOut
	}
	return code.DirectionIn
}

// ifindex lowers "ifindex N". No interface has the number 0, which is what is not known.
func (l *lowerer) ifindex(e *syntax.Interface) cond {
	if l.link == LinuxSLL2 {
		return l.compare(code.Equal, l.b.Load(nil, 4, 4), e.Index)
	}
	if l.Stored {
		l.fail(e.Column(), "the index of an interface is known while packets are captured, or of LINUX_SLL2", "")
	}
	if e.Index == 0 {
		return never
	}
	return l.compare(code.Equal, l.b.Meta(code.Interface), e.Index)
}

var ownerFields = map[syntax.OwnerField]code.OwnerField{
	syntax.UID:  code.UID,
	syntax.PID:  code.PID,
	syntax.Comm: code.Comm,
	syntax.Unit: code.Unit,
}

// owner lowers uid, pid, comm and unit. A user's name is looked up.
func (l *lowerer) owner(e *syntax.Owner) cond {
	if l.Stored {
		l.fail(e.Column(), "whose packets are is known while they are captured alone", "")
	}
	n, text := e.N, e.Text
	if e.Field == syntax.UID && text != "" {
		n, text = l.user(e, text), ""
	}
	return func(yes, no *code.Node) *code.Node { return l.b.Owner(ownerFields[e.Field], n, text, yes, no) }
}

func (l *lowerer) user(e *syntax.Owner, name string) uint32 {
	uid, ok := l.Names.User(name)
	if !ok {
		l.fail(e.ValueAt.Column(), fmt.Sprintf("unknown user %q", name), "a number or the name of a user")
	}
	return uid
}
