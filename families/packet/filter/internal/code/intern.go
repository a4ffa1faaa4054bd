package code

import (
	"math/bits"
	"math/rand/v2"
)

// interned keeps one of each of what is equal, so that things are compared by their pointers. It is a
// table with open addressing: a map would copy and hash all of a thing, which most of
// the time of a compilation went into.
type interned[T any, P item[T]] struct {
	slots []P // a power of two of them, at most half in use
	fresh []T // made at once, not in use yet
	n     int
	seed  uint32 // so that no text is made for one slot
}

// item is what can be interned.
type item[T any] interface {
	*T
	hash() uint32
	same(other *T) bool
}

// firstSlots is enough for what most users write.
const firstSlots = 256

// get is the one that is the same as v.
func (t *interned[T, P]) get(v T) P {
	if 2*t.n >= len(t.slots) {
		t.grow()
	}
	if len(t.fresh) == 0 {
		t.fresh = make([]T, max(32, t.n/2))
	}
	t.fresh[0] = v // where it stays, if it is new
	made := P(&t.fresh[0])
	slot := t.slot(made)
	if *slot == nil {
		*slot, t.fresh = made, t.fresh[1:]
		t.n++
	}
	return *slot
}

// slot is where the one that is the same as v is, or nil in its place.
func (t *interned[T, P]) slot(v P) *P {
	last := uint32(len(t.slots) - 1)
	for i := hashed(v.hash(), t.seed) >> (32 - bits.Len32(last)); ; i++ {
		if s := &t.slots[i&last]; *s == nil || (*s).same(v) {
			return s
		}
	}
}

func (t *interned[T, P]) grow() {
	was := t.slots
	t.seed = rand.Uint32()
	t.slots = make([]P, max(firstSlots, 2*len(was)))
	for _, v := range was {
		if v != nil {
			*t.slot(v) = v
		}
	}
}

// hashed is a hash with one more number in it. Its first bits are the best.
func hashed(h, more uint32) uint32 {
	h = (h ^ more) * 0x9e3779b1
	return h ^ h>>15
}
