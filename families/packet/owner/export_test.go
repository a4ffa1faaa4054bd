package owner

// What the tests look at from outside.
var (
	FlowOf        = flowOf
	UnitOfProcess = unitOfProcess
)
