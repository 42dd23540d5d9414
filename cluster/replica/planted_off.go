//go:build !planted

package replica

// broken is where a test build breaks a rule on purpose (planted.go). It costs nothing here.
func broken(string) bool { return false }
