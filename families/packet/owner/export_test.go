package owner

import "time"

// Patient lets a Finder ask for as long as it takes, on however busy a machine.
func (f *Finder) Patient() *Finder {
	f.spare = newAllowance(time.Hour)
	return f
}

// What the tests look at from outside.
var (
	FlowOf        = flowOf
	UnitOfProcess = unitOfProcess
)
