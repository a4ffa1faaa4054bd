package model

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// `close 068` closed 68, and `close +1` was asked of the daemon.
func TestAnIDIsReadAsItIsPrinted(t *testing.T) {
	for text, want := range map[string]ID{"1": 1, "68": 68, "9223372036854775807": 1<<63 - 1} {
		id, ok := ParseID(text)
		require.True(t, ok, text)
		require.Equal(t, want, id)
	}
	for _, text := range []string{"", "0", "068", "+1", "-1", "1x", " 1", "1_0", "0x1", "9223372036854775808", "web"} {
		id, ok := ParseID(text)
		require.False(t, ok, text)
		require.Zero(t, id)
	}
}
