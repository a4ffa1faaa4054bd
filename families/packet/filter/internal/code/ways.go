package code

// maxWays bounds takesSome, by how many tests it comes by. The ways through a graph can be more than
// anybody could go. That is some milliseconds, and of filters that take something it is few tests.
const maxWays = 1 << 13

// takesSome tells whether there is a way from root to where packets are taken on which no test
// contradicts those before it; also when it has looked too long.
//
// thread knows of a node what all ways to it have in common. That "[12] = 0x86dd" holds on some of
// them, and on all others "[12] = 0x800", is lost there, and with it that "[12] = 0x6001" can not be.
// When no way takes a packet, what is loaded on them does not matter: all of them end in a rejection.
func (o *optimiser) takesSome(root *Node) bool {
	left := maxWays
	return o.goes(root, o.facts.about(0), &left)
}

// goes tells it of the ways from n on, behind one with some facts. left is how many tests it may still
// come by.
func (o *optimiser) goes(n *Node, f *fact, left *int) bool {
	if n.kind == ends {
		return n.n != 0
	}
	if *left--; *left < 0 {
		return true
	}
	answer, known := o.answer(n, f)
	for _, yes := range [...]bool{true, false} {
		if known && yes != answer {
			continue
		}
		before := len(o.facts)
		next := o.facts.child(f, n)
		next.answered, next.yes = true, yes
		if o.goes(choose(yes, n.yes, n.no), next, left) {
			return true
		}
		o.facts = o.facts[:before] // nobody asks for this way's any more
	}
	return false
}
