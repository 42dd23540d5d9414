//go:build planted

package planted

import "os"

var rule = os.Getenv("PLANTED")

// Broken says that a rule is broken on purpose.
func Broken(r string) bool { return rule == r }
