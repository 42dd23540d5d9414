//go:build !planted

package planted

// Broken says that a rule is broken on purpose: never, in this build.
func Broken(string) bool { return false }
