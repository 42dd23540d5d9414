// Package place decides which nodes hold which placement group. It is pure and exact: integers only, no clock, no random numbers, no
// map iterations; the same input gives the same output on every machine, because every node computes it while applying an agreed command.
//
// The work is done in three steps, each in a file of its own:
//
//	quota.go    how many replicas each node shall hold: in proportion to its weight, as far as distinct zones allow
//	assign.go   who leaves and who comes, group by group, until every node holds its quota, moving little
//	primary.go  whose turn it is to be first, so that each node leads its part of what it holds
//
// # What is promised
//
// Every group has as many distinct nodes as copies were asked for, or as there are. They are in distinct zones where there are enough zones; where
// there are not, no zone holds more of a group than it must. The shares are those of D'Hondt's method of dividing seats: of all
// ways to round to whole replicas it is the one under which the fullest node, relative to its weight, is least full, and a node that joins only takes from
// others, a node that leaves only gives.
//
// A node can hold a group once, and a zone too: one that weighs more than all others together does not get its full share. What it cannot take
// falls on the others by weight.
//
// # What it does not do
//
// It does not know who is up, what is stored where now, or what a move costs. It gives the plan; primaries carry it out.
package place
