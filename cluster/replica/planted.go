//go:build planted

package replica

import "os"

// Built with the tag "planted", one rule named in the environment is broken on purpose, so that it can be seen that the simulation finds it:
//
//	PLANTED=R16 go test -tags planted -run TestSimulation -sim.seeds 200 ./cluster/replica
var planted = os.Getenv("PLANTED")

func broken(rule string) bool { return planted == rule }
