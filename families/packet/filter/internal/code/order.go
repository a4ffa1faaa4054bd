package code

import "slices"

// vertex is a node or a block.
type vertex[V any] interface {
	comparable
	leads() (yes, no V)
	number() uint32 // 0 is none
}

// order is what the first of them leads to, each before those that it leads to, and where there
// is a choice yes right behind its test. That is libpcap's order.
type order[V vertex[V]] struct {
	all []V
	at  []int32 // of each number its place in all, plus 1; 0 is not there
}

// inOrder is the order of what first leads to. No number is above last.
func inOrder[V vertex[V]](first V, last int) (o order[V]) {
	o.find(first, last)
	return o
}

// find makes it the order of what first leads to, in the memory of what it was.
func (o *order[V]) find(first V, last int) {
	o.at = zeroed(o.at, last+1)
	if o.all = o.all[:0]; cap(o.all) == 0 {
		o.all = make([]V, 0, min(last, firstSlots/4))
	}
	o.visit(first)
	slices.Reverse(o.all)
	for i, v := range o.all {
		o.at[v.number()] = int32(i + 1)
	}
}

// zeroed is n zeros, in the memory of s when there is enough.
func zeroed[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n, n+n/4)
	}
	clear(s[:n])
	return s[:n]
}

func (o *order[V]) visit(v V) {
	if v.number() == 0 || o.at[v.number()] != 0 {
		return
	}
	o.at[v.number()] = 1
	yes, no := v.leads()
	o.visit(no)
	o.visit(yes)
	o.all = append(o.all, v)
}

// place is where v is in the order.
func (o *order[V]) place(v V) int { return int(o.at[v.number()]) - 1 }
