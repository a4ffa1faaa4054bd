// Package all is the list of families, in their order of preference: one line
// each. Only cmd/sockd and tests import it.
package all

import (
	"github.com/sockd/sockd/families"
	"github.com/sockd/sockd/families/inet"
	"github.com/sockd/sockd/families/inet6"
	"github.com/sockd/sockd/families/local"
	"github.com/sockd/sockd/families/packet"
)

// Set lists every family of this build. inet6 stands before inet, so that
// tcp::80 is dual-stack where the host has IPv6.
func Set() families.Set {
	return families.Set{
		inet6.Family,
		inet.Family,
		local.Family,
		packet.Family,
	}
}
