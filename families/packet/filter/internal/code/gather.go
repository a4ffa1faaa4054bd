package code

import "slices"

// gather puts tests of one value behind each other, so that it is loaded once:
//
//	src a ──no──> dst a ──no──> src b ──no──> dst b ──no──> ...
//	src a ──no──> dst a ──no──> dst b ──no──> src b ──no──> ...
//
// It moves only tests that lead to one place, and load nothing that was not loaded before them: these
// can be asked in any order. So "src b" does not come right behind "src a", where libpcap
// has it: a packet from b that is cut off before its destination is to be rejected.
//
// It goes on in the pass that found nothing to lead elsewhere, by what is known in that.
func (o *optimiser) gather() *Node {
	o.findBefore()
	rows := o.rows()
	for i := len(o.all) - 1; i >= 0; i-- {
		if n := o.all[i]; rows[i].tests != nil {
			o.made[i] = o.remade(&rows[i])
		} else if n.kind != ends {
			o.made[i] = o.leading(n, o.became(n.yes), o.became(n.no))
		}
	}
	return o.made[0]
}

// several is before a node that more than one leads to.
var several = &Node{}

// findBefore tells of each node which one leads to it, when that is only one.
func (o *optimiser) findBefore() {
	o.before = zeroed(o.before, len(o.all))
	for _, n := range o.all {
		if n.kind == ends {
			continue
		}
		for _, next := range [...]*Node{n.yes, n.no} {
			b := &o.before[o.place(next)]
			if *b == nil {
				*b = n
			} else {
				*b = several
			}
		}
	}
}

// row is some tests one behind the other. Each leads to the exit on one answer, and on the
// other to the next, the last to the end.
type row struct {
	tests     []*Node
	exit, end *Node
}

// rows are those that are shorter when their tests are moved, which is done, by the places of their
// first ones. Each test is in one at most.
func (o *optimiser) rows() []row {
	rows, taken := make([]row, len(o.all)), make([]bool, len(o.all))
	for i, n := range o.all {
		if taken[i] || n.kind == ends {
			continue
		}
		r, other := o.row(n, n.yes), o.row(n, n.no)
		if len(other.tests) > len(r.tests) {
			r = other
		}
		for _, n := range r.tests {
			taken[o.place(n)] = true
		}
		if o.sort(&r) {
			rows[i] = r
		}
	}
	return rows
}

// row is the one that begins with first, and ends before a test that leads elsewhere too, is led
// to from elsewhere too, or may load something new.
func (o *optimiser) row(first, exit *Node) row {
	r := row{exit: exit, end: first}
	known := o.known[o.place(first)]
	for n := first; n.tests() != nil && known.loaded(n); n = r.end {
		if n != first && o.before[o.place(n)] == several {
			break
		}
		switch exit {
		case n.yes:
			r.end = n.no
		case n.no:
			r.end = n.yes
		default:
			return r
		}
		r.tests = append(r.tests, n)
	}
	return r
}

// tests is the value that n compares with a number, nil for none.
func (n *Node) tests() *Value {
	if n == nil || n.kind != compares || n.y.op != opConst {
		return nil
	}
	return n.x
}

// sort moves the tests, those of the value first that the test before them left loaded. It tells
// whether that saves a load.
func (o *optimiser) sort(r *row) bool {
	if len(r.tests) < 2 {
		return false
	}
	before := o.before[o.place(r.tests[0])].tests()
	was := changes(before, r)
	turn := map[*Value]int{before: -1}
	for i, n := range r.tests {
		if _, ok := turn[n.x]; !ok {
			turn[n.x] = i
		}
	}
	slices.SortStableFunc(r.tests, func(n, m *Node) int { return turn[n.x] - turn[m.x] })
	return changes(before, r) < was
}

// changes is how often the tests and the end want another value than the one before.
func changes(last *Value, r *row) (n int) {
	for _, t := range r.tests {
		if t.x != last {
			n++
		}
		last = t.x
	}
	if r.end.tests() != last {
		n++
	}
	return n
}

// remade makes the tests of a row.
func (o *optimiser) remade(r *row) *Node {
	exit, next := o.became(r.exit), o.became(r.end)
	for _, n := range slices.Backward(r.tests) {
		if n.yes == r.exit {
			next = o.leading(n, exit, next)
		} else {
			next = o.leading(n, next, exit)
		}
	}
	return next
}
