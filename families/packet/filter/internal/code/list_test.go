package code

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func text(tb testing.TB, p *Program) string {
	tb.Helper()
	var out strings.Builder
	require.NoError(tb, p.List(&out, Text))
	return out.String()
}
