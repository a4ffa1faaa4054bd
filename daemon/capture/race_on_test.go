//go:build race

package capture

// raced tells whether the race detector is on, which allocates by itself.
const raced = true
