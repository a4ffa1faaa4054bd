// Package familytest holds what the tests of families share: the conformance
// suite (Run), the law that addresses print what they parse (FuzzAddr), a family
// that lives in memory (Mem), network namespaces (NewNS, Veth), and checks for
// leaks (NoLeaks) and for what a machine can do (Need). Only tests import it.
package familytest
