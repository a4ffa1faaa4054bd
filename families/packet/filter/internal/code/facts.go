package code

import (
	"math"
	"math/bits"
)

// fact is what is known on a way through a graph: the tests on it, and the answers of those that
// have the same one on all ways. One of depth 0 is nothing.
type fact struct {
	parent   *fact
	jump     *fact // one far above, so that common takes few steps
	depth    int
	node     *Node
	answered bool
	yes      bool
	length   uint64 // the packet is at least as long
}

// maxFacts bounds how many facts are looked through, the latest ones. Long lists of
// alternatives ("port 1 or 2 or ...") would take time by the square of their length.
const maxFacts = 512

// facts are those of a pass over a graph, the first of which is nothing.
type facts []fact

// about are the facts for a number of nodes: that each is asked, and its two answers.
func (f *facts) about(nodes int) (nothing *fact) {
	*f = append(zeroed(*f, 1+3*nodes)[:0], fact{})
	nothing = &(*f)[0]
	nothing.jump = nothing
	return nothing
}

// child knows what f does. Its jump is as in a skew-binary list: of two jumps as
// long as each other it makes one.
func (all *facts) child(f *fact, n *Node) *fact {
	*all = append(*all, fact{parent: f, jump: f, depth: f.depth + 1, node: n, length: f.length})
	out := &(*all)[len(*all)-1]
	if f.depth-f.jump.depth == f.jump.depth-f.jump.jump.depth {
		out.jump = f.jump.jump
	}
	return out
}

// asked is f and that n was asked.
func (all *facts) asked(f *fact, n *Node) *fact {
	out := all.child(f, n)
	switch n.kind {
	case compares:
		out.length = max(out.length, n.x.length(), n.y.length())
	case walksChain:
		out.length = max(out.length, uint64(n.chain.Start)+1)
	}
	return out
}

// answered is f, the latest of which has this answer.
func (all *facts) answered(f *fact, yes bool) *fact {
	out := all.child(f, f.node)
	out.answered, out.yes = true, yes
	return out
}

// length is how long a packet is at least of which v is computed.
func (v *Value) length() uint64 {
	longest := uint64(0)
	for range maxDepth { // of what is more, less is known
		switch {
		case v == nil:
			return longest
		case v.op == opLoad && v.x == nil:
			return max(longest, uint64(v.k)+uint64(v.size))
		case v.op == opLoad:
			longest = max(longest, uint64(v.k)+uint64(v.size))
		}
		v = v.x
	}
	return longest
}

// common is what is known on both ways.
func (f *fact) common(g *fact) *fact {
	if f.depth < g.depth {
		f, g = g, f
	}
	for f.depth > g.depth {
		if f.jump.depth >= g.depth {
			f = f.jump
		} else {
			f = f.parent
		}
	}
	for f != g {
		if f.jump != g.jump {
			f, g = f.jump, g.jump
		} else {
			f, g = f.parent, g.parent
		}
	}
	return f
}

// answer is that of n, if f tells it.
func (o *optimiser) answer(n *Node, f *fact) (yes, known bool) {
	if o.answers++; o.answers > maxAnswers {
		return false, false
	}
	byNumber := n.kind == compares && n.y.op == opConst
	r := unknown(n, o)
	for i := 0; i < maxFacts && f.depth > 0; i, f = i+1, f.parent {
		switch {
		case !f.answered:
		case n.asksAs(f.node):
			return f.yes, true
		case n.kind == asksOwner:
			if f.yes && f.node.kind == asksOwner && f.node.owner == n.owner {
				return false, true // it is another
			}
		case byNumber:
			r.learn(f, n.x)
		}
	}
	if byNumber {
		return r.answer(n.op, n.y.k)
	}
	return false, false
}

// rangeOf is what is known of a number: its bounds, and bits that are set or not.
type rangeOf struct {
	low, high  uint32
	ones, zero uint32
}

// unknown is what is known of the number that n tests before it is.
func unknown(n *Node, o *optimiser) rangeOf {
	if n.kind != compares {
		return rangeOf{high: math.MaxUint32}
	}
	return rangeOf{high: o.max(n.x), zero: ^o.bits(n.x)}
}

// learn adds what a fact says about v.
func (r *rangeOf) learn(f *fact, v *Value) {
	n := f.node
	if n.kind != compares || n.y.op != opConst {
		return
	}
	k := n.y.k
	switch {
	case n.x != v:
		if n.op == Equal && f.yes {
			if k, ok := v.given(n.x, k, maxDepth); ok {
				r.atLeast(k)
				r.atMost(k)
			}
		}
	case n.op == Set:
		r.learnSet(k, f.yes)
	case n.op == Equal:
		r.learnEqual(k, f.yes)
	default:
		r.learnGreater(n.op, k, f.yes)
	}
}

func (r *rangeOf) learnEqual(k uint32, yes bool) {
	switch {
	case yes:
		r.atLeast(k)
		r.atMost(k)
	case k == r.low && k < math.MaxUint32:
		r.low++
	case k == r.high && k > 0:
		r.high--
	}
}

func (r *rangeOf) learnSet(k uint32, yes bool) {
	switch {
	case !yes:
		r.zero |= k
	case k&(k-1) == 0:
		r.ones |= k
	}
	if yes {
		r.atLeast(1 << bits.TrailingZeros32(k))
	}
}

// learnGreater is of Greater and GreaterEqual. No fact is one that nothing can be.
func (r *rangeOf) learnGreater(op Compare, k uint32, yes bool) {
	switch {
	case op == Greater && yes && k < math.MaxUint32:
		r.atLeast(k + 1)
	case op == Greater && !yes:
		r.atMost(k)
	case op == GreaterEqual && yes:
		r.atLeast(k)
	case op == GreaterEqual && !yes && k > 0:
		r.atMost(k - 1)
	}
}

func (r *rangeOf) atLeast(k uint32) { r.low = max(r.low, k) }
func (r *rangeOf) atMost(k uint32)  { r.high = min(r.high, k) }

// answer tells whether the number op k, if that is known.
func (r *rangeOf) answer(op Compare, k uint32) (yes, known bool) {
	if r.low == r.high {
		return op.holds(r.low, k), true
	}
	switch op {
	case Equal:
		return false, k < r.low || k > r.high || k&r.zero != 0 || r.ones&^k != 0
	case Set:
		return r.ones&k != 0, r.ones&k != 0 || k&^r.zero == 0
	case Greater:
		return r.low > k, r.low > k || r.high <= k
	}
	return r.low >= k, r.low >= k || r.high < k
}

// maxDepth bounds how deeply values are looked into.
const maxDepth = 16

// given is v when u is k, if v is computed of u and constants alone.
func (v *Value) given(u *Value, k uint32, depth int) (uint32, bool) {
	switch {
	case v == u:
		return k, true
	case depth == 0 || v.op <= opMeta || v.y.op != opConst:
		return 0, false
	}
	x, ok := v.x.given(u, k, depth-1)
	if !ok {
		return 0, false
	}
	return v.op.apply(x, v.y.k)
}

// loaded tells whether nothing that n computes can reject the packet, because it was computed
// before.
func (f *fact) loaded(n *Node) bool {
	switch n.kind {
	case asksOwner:
		return true
	case walksChain:
		return f.computed(func(m *Node) bool { return n.asksAs(m) })
	}
	return f.harmless(n.x, maxDepth) && f.harmless(n.y, maxDepth)
}

// harmless tells it of a value.
func (f *fact) harmless(v *Value, depth int) bool {
	switch {
	case v == nil || v.op == opConst || v.op == opMeta:
		return true
	case v.plainLoad() && uint64(v.k)+uint64(v.size) <= f.length:
		return true
	case depth == 0:
		return false
	case v.op > opMeta && (v.op != Div && v.op != Mod || v.y.op == opConst && v.y.k != 0):
		return f.harmless(v.x, depth/2) && f.harmless(v.y, depth/2)
	}
	return f.computed(func(m *Node) bool {
		return m.kind == compares && (m.x.contains(v, maxDepth) || m.y.contains(v, maxDepth))
	})
}

// computed tells whether the question of one of the tests is as asked for.
func (f *fact) computed(is func(*Node) bool) bool {
	for i := 0; i < maxFacts && f.depth > 0; i, f = i+1, f.parent {
		if !f.answered && is(f.node) {
			return true
		}
	}
	return false
}

// contains tells whether u is computed for v.
func (v *Value) contains(u *Value, depth int) bool {
	if v == nil || depth == 0 {
		return false
	}
	return v == u || v.x.contains(u, depth/2) || v.y.contains(u, depth/2)
}
