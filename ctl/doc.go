// Package ctl is sockd's control protocol: the Varlink methods that the daemon
// serves, and the verbs of sockd-ctl that call them. cmd/sockd serves it with a
// Backend; cmd/sockd-ctl runs its verbs. It knows no family and not the daemon:
// what it needs of the daemon is the interface Backend.
//
// # One file a verb
//
// verb_NAME.go holds all of a verb: the parameters of its method, the half that
// runs in the daemon (a method, registered with addMethod) and the half that runs in
// sockd-ctl (a Verb, registered with register). Help, completion, man pages and
// the usage test pick it up by themselves. A method stands in one of the
// interface descriptions beside this file, and a test compares the two.
//
// # To add a verb
//
// Write its method into the interface description, its file, and one story in
// cmd/sockd-ctl/testdata.
package ctl
