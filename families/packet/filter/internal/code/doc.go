// Package code makes programs that judge packets. A Builder makes a graph of
// tests of values; Assemble optimises it and writes its instructions, those of classic
// BPF (linux/filter.h) and a few more; Run executes them, Kernel translates them for
// a socket filter, and List prints them.
//
//	b := code.NewBuilder()
//	etherType := b.Load(nil, 12, 2)
//	ip := b.Test(code.Equal, etherType, b.Const(0x800), b.Accept(), b.Reject())
//	program, err := b.Assemble(ip, false)
//
// A graph is built from its ends to its beginning: the nodes that a test leads to
// are there before it. So there is no way round in it, and every program ends.
package code
