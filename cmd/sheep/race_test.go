//go:build race

package main

// raceEnabled: the race detector slows whole clusters beyond the waits of the stories; packages below have their own tests with it.
const raceEnabled = true
