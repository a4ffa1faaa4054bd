package code

import "math"

// algebra makes values and tests simpler, with the same results of the same loads: a load that is beyond
// the data rejects the packet, so none is left out, also not where it is multiplied by 0.
type algebra struct {
	b    *Builder
	done map[*Value]*Value
	most map[*Value]uint32
}

// value is v, made simpler.
func (a *algebra) value(v *Value) *Value {
	if v == nil || v.op == opConst || v.op == opMeta || v.plainLoad() {
		return v
	}
	if known, ok := a.done[v]; ok {
		return known
	}
	var out *Value
	if v.op == opLoad {
		out = a.load(a.value(v.x), v.k, v.size)
	} else {
		out = a.compute(v.op, a.value(v.x), a.value(v.y))
	}
	a.done[v] = out
	return out
}

// load adds what is added to x to the offset, where the sum cannot wrap around.
func (a *algebra) load(x *Value, k uint32, size int) *Value {
	if x.op == Add && x.y.op == opConst && x.y.k <= math.MaxUint32-a.max(x.x) && x.y.k <= math.MaxUint32-k {
		return a.b.Load(x.x, k+x.y.k, size)
	}
	return a.b.Load(x, k, size)
}

func (op Op) commutes() bool { return op == Add || op == Mul || op == And || op == Or || op == Xor }

// compute has a constant on the right where it may be, and one operation for two by
// constants.
func (a *algebra) compute(op Op, x, y *Value) *Value {
	if x.op == opConst && op.commutes() {
		x, y = y, x
	}
	if y.op != opConst || x.op == opConst {
		return a.b.Compute(op, x, y)
	}
	if op.neutral(y.k) || op == And && a.bits(x)&^y.k == 0 {
		return x
	}
	if x.op == op && x.y.op == opConst {
		if k, ok := op.both(x.y.k, y.k); ok {
			return a.compute(op, x.x, a.b.Const(k))
		}
	}
	return a.b.Compute(op, x, y)
}

// neutral tells whether x op k is x.
func (op Op) neutral(k uint32) bool {
	switch op {
	case Add, Sub, Or, Xor, ShiftLeft, ShiftRight:
		return k == 0
	case Mul, Div:
		return k == 1
	case And:
		return k == math.MaxUint32
	}
	return false
}

// both is a constant that does to x what two do one after the other.
func (op Op) both(first, then uint32) (k uint32, ok bool) {
	switch op {
	case Add, Sub:
		return first + then, true
	case ShiftLeft, ShiftRight:
		return first + then, true // each is below 32
	case Mul, And, Or, Xor:
		return op.apply(first, then)
	}
	return 0, false
}

// bits are those that can be set in v.
func (a *algebra) bits(v *Value) uint32 {
	most := a.max(v)
	for shift := 1; shift < 32; shift *= 2 {
		most |= most >> shift
	}
	return most
}

// max is a number that v is never greater than.
func (a *algebra) max(v *Value) uint32 {
	switch {
	case v.op == opConst:
		return v.k
	case v.op == opLoad:
		return uint32(1<<(8*v.size) - 1)
	case v.op == opMeta || v.y.op != opConst:
		return math.MaxUint32
	}
	if known, ok := a.most[v]; ok {
		return known
	}
	out := v.op.max(a.max(v.x), v.y.k)
	a.most[v] = out
	return out
}

// max is the greatest of 0 op k to x op k, or more.
func (op Op) max(x, k uint32) uint32 {
	wide := uint64(math.MaxUint32)
	switch op {
	case Add:
		wide = uint64(x) + uint64(k)
	case Mul:
		wide = uint64(x) * uint64(k)
	case ShiftLeft:
		wide = uint64(x) << k
	case ShiftRight:
		wide = uint64(x >> k)
	case And:
		wide = uint64(min(x, k))
	case Div:
		wide = uint64(x / max(k, 1))
	case Mod:
		wide = uint64(min(x, max(k, 1)-1))
	}
	return uint32(min(wide, math.MaxUint32))
}

// node is a test, made simpler, that leads to yes and no.
func (a *algebra) node(n *Node, yes, no *Node) *Node {
	out := *n
	out.yes, out.no = yes, no
	if n.kind != compares {
		return a.b.node(out)
	}
	out.x, out.y = a.value(n.x), a.value(n.y)
	for a.rewrite(&out) {
	}
	return a.b.Test(out.op, out.x, out.y, out.yes, out.no)
}

// rewrite makes one step, false when there is none to make.
func (a *algebra) rewrite(n *Node) bool {
	x := n.x
	if x.op <= opMeta || n.y.op != opConst {
		return false
	}
	k := n.y.k
	switch {
	case x.y.op != opConst:
		if n.op == Equal && k == 0 && (x.op == Sub || x.op == Xor) {
			n.x, n.y = x.x, x.y
			return true
		}
		return false
	case x.op == And:
		return a.masked(n, x.y.k, k)
	case n.op == Equal:
		return a.moved(n, x.y.k, k)
	}
	return false
}

// masked rewrites a test of x & mask.
func (a *algebra) masked(n *Node, mask, k uint32) bool {
	switch {
	case mask == 0:
		return false // tests for what nothing can be are left to the facts
	case n.op == Equal && k == 0:
		n.yes, n.no = n.no, n.yes
	case n.op == Equal && k == mask && mask&(mask-1) == 0, n.op == Greater && k == 0, n.op == GreaterEqual && k == 1:
	case n.op == Set && mask&k != 0:
		mask &= k
	default:
		return false
	}
	n.op, n.x, n.y = Set, n.x.x, a.b.Const(mask)
	return true
}

// moved rewrites x + y == k.
func (a *algebra) moved(n *Node, y, k uint32) bool {
	switch n.x.op {
	case Add:
		k -= y
	case Sub:
		k += y
	case Xor:
		k ^= y
	default:
		return false
	}
	n.x, n.y = n.x.x, a.b.Const(k)
	return true
}
