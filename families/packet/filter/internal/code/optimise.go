package code

// maxAnswers bounds the optimiser, by how many tests it looks for an answer of: all of a graph
// of thousands, several times. What users write takes hundreds.
const maxAnswers = 1 << 17

// optimise is a graph with the verdicts of root's, and fewer tests.
func (b *Builder) optimise(root *Node) *Node {
	o := optimiser{algebra: algebra{b: b, done: map[*Value]*Value{}, most: map[*Value]uint32{}}}
	root = o.simplify(root)
	for o.answers < maxAnswers && !b.full {
		next := o.thread(root)
		if next == root {
			root = o.gather()
			break
		}
		root = next
	}
	if !b.full && !o.takesSome(root) {
		return b.Reject()
	}
	return root
}

type optimiser struct {
	algebra
	answers int // how many were looked for

	// Of the present pass, by the places of nodes in it.
	order[*Node]
	facts  facts
	known  []*fact // at each node, nil: nothing leads there any more
	to     []edges // where each is to lead
	made   []*Node // what each node becomes
	before []*Node // the one that leads to each node, or several
}

// begin makes ready for a pass over what root leads to.
func (o *optimiser) begin(root *Node) {
	o.order.find(root, o.b.nodes.n)
	o.made = append(o.made[:0], o.all...)
}

// simplify makes every test simpler.
func (o *optimiser) simplify(root *Node) *Node {
	o.begin(root)
	for i := len(o.all) - 1; i >= 0; i-- {
		if n := o.all[i]; n.kind != ends {
			o.made[i] = o.node(n, o.became(n.yes), o.became(n.no))
		}
	}
	return o.made[0]
}

// became is what a node became in this pass.
func (o *optimiser) became(n *Node) *Node { return o.made[o.place(n)] }

// thread leads every edge past the tests whose answer is known on it, and makes the graph
// anew, in which equal nodes become one.
//
// What is known on an edge is what all ways to it have in common.
func (o *optimiser) thread(root *Node) *Node {
	nothing := o.facts.about(0)
	root = o.follow(root, nothing)
	o.begin(root)
	nothing = o.facts.about(len(o.all))
	o.known = zeroed(o.known, len(o.all))
	o.known[0] = nothing
	o.to = zeroed(o.to, len(o.all))
	for i, n := range o.all {
		if o.known[i] != nil && n.kind != ends {
			asked := o.facts.asked(o.known[i], n)
			o.to[i] = edges{o.lead(n.yes, asked, true), o.lead(n.no, asked, false)}
		}
	}
	return o.rebuild()
}

// edges are where a node leads to.
type edges struct{ yes, no *Node }

// lead is where an edge ends that leads to n by an answer, and adds to what is known there.
func (o *optimiser) lead(n *Node, asked *fact, yes bool) *Node {
	f := o.facts.answered(asked, yes)
	n = o.follow(n, f)
	known := &o.known[o.place(n)]
	if *known != nil {
		f = f.common(*known)
	}
	*known = f
	return n
}

// rebuild makes the nodes that are led to, the first of them last. Those are left out whose ways have
// become the same.
func (o *optimiser) rebuild() *Node {
	for i := len(o.all) - 1; i >= 0; i-- {
		to := o.to[i]
		if to.yes == nil {
			continue // an end, or not reached any more
		}
		n, yes, no := o.all[i], o.became(to.yes), o.became(to.no)
		if yes == no && (yes.rejects() || o.known[i].loaded(n)) {
			o.made[i] = yes
		} else {
			o.made[i] = o.leading(n, yes, no)
		}
	}
	return o.made[0]
}

// leading is n when it leads elsewhere.
func (o *optimiser) leading(n, yes, no *Node) *Node {
	if n.yes == yes && n.no == no {
		return n
	}
	next := *n
	next.yes, next.no = yes, no
	return o.b.node(next)
}

// follow is where an edge to n ends that goes past the tests that are of no use on it.
func (o *optimiser) follow(n *Node, f *fact) *Node {
	for n.kind != ends {
		next := o.past(n, f)
		if next == nil {
			return n
		}
		n = next
	}
	return n
}

// past is where n leads to when that is known, nil when it is not. A load that
// may reject the packet is not left out, unless the packet is rejected there anyway.
func (o *optimiser) past(n *Node, f *fact) *Node {
	next := n.yes
	if n.yes != n.no {
		yes, known := o.answer(n, f)
		if !known {
			return nil
		}
		next = choose(yes, n.yes, n.no)
	}
	if next.rejects() || f.loaded(n) {
		return next
	}
	return nil
}
