//go:build !race

package main

// buildFlags build the daemon of the stories as this test is built.
var buildFlags []string
