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
			break
		}
		root = next
	}
	return root
}

type optimiser struct {
	algebra
	answers int // how many were looked for
}

// simplify makes every test simpler.
func (o *optimiser) simplify(root *Node) *Node {
	order := inOrder(root, (*Node).leads)
	made := make(map[*Node]*Node, len(order))
	for i := len(order) - 1; i >= 0; i-- {
		n := order[i]
		if made[n] = n; n.kind != ends {
			made[n] = o.node(n, made[n.yes], made[n.no])
		}
	}
	return made[root]
}

// edges are where a node leads to.
type edges struct{ yes, no *Node }

// thread leads every edge past the tests whose answer is known on it, and makes the graph
// anew, in which equal nodes become one.
//
// What is known on an edge is what all ways to it have in common.
func (o *optimiser) thread(root *Node) *Node {
	nothing := noFacts()
	root = o.follow(root, nothing)
	order := inOrder(root, (*Node).leads)
	known := make(map[*Node]*fact, len(order))
	to := make(map[*Node]edges, len(order))
	known[root] = nothing
	for _, n := range order {
		before, reached := known[n]
		if !reached || n.kind == ends {
			continue
		}
		asked := before.and(n)
		lead := func(there *Node, yes bool) *Node {
			f := asked.answer(yes)
			there = o.follow(there, f)
			if other, ok := known[there]; ok {
				f = f.common(other)
			}
			known[there] = f
			return there
		}
		to[n] = edges{lead(n.yes, true), lead(n.no, false)}
	}
	return o.rebuild(order, to)
}

// rebuild makes the nodes that are led to, the first of them last.
func (o *optimiser) rebuild(order []*Node, to map[*Node]edges) *Node {
	made := make(map[*Node]*Node, len(order))
	for i := len(order) - 1; i >= 0; i-- {
		n := order[i]
		e, led := to[n]
		switch {
		case !led:
			made[n] = n // an end, or not reached any more
		default:
			next := *n
			next.yes, next.no = made[e.yes], made[e.no]
			made[n] = o.b.node(next)
		}
	}
	return made[order[0]]
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

func (n *Node) rejects() bool { return n.kind == ends && n.n == 0 }
