package replica

import "github.com/sheepdog-go/sheepdog/cluster/planted"

// broken is where a test build breaks a rule on purpose.
func broken(rule string) bool { return planted.Broken(rule) }
