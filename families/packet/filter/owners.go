package filter

import "github.com/sockd/sockd/families/packet/filter/syntax"

// Owners are the words of the filter that ask whose a packet is, in the text's order. Who
// runs a program that has some sets Packet.Owner.
func (p *Program) Owners() []*syntax.Owner {
	if p == nil {
		return nil
	}
	return appendOwners(nil, p.tree)
}

func appendOwners(to []*syntax.Owner, e syntax.Expr) []*syntax.Owner {
	switch e := e.(type) {
	case *syntax.Binary:
		return appendOwners(appendOwners(to, e.X), e.Y)
	case *syntax.Not:
		return appendOwners(to, e.X)
	case *syntax.Owner:
		return append(to, e)
	}
	return to
}
