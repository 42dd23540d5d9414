package admin

import "crypto/rand"

// newID names a command.
func newID() string { return rand.Text() }
