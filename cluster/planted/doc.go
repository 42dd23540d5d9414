// Package planted breaks rules on purpose, so that it can be seen that tests find it. Built with the tag "planted", the rule named in the environment is
// broken where the code asks; in every other build nothing is, and asking costs nothing.
//
//	PLANTED=R16 go test -tags planted ./cluster/simulation -sim.seeds 200
//
// scripts/planted does this rule by rule.
package planted
