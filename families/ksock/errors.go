package ksock

import (
	"fmt"

	"github.com/sockd/sockd/families"
)

// errFilesCut: descriptors came with a message, but this process may open no
// more. The message's bytes are valid, its descriptors are lost.
var errFilesCut = fmt.Errorf("descriptors that came with the message, too many files are open: %w", families.ErrCut)
