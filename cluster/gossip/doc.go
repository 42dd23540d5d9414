// Package gossip finds nodes (memberlist). It says who seems to be there and where, and decides nothing: not who is alive, not who
// belongs to the cluster.
//
// What a node says of itself fits memberlist's 512 bytes of metadata, as JSON with short names:
//
//	{"u": uuid, "a": "host:port" that peers dial, "c": cluster, "n": number, "i": incarnation, "z": zone, "w": weight}
//
// Addresses to join through are tried for ever in the background, so nodes may start in any order. A node without a cluster talks to everybody; nodes of
// different clusters refuse each other, with one line in the log.
//
// Goroutines: join (one), and memberlist's own. Callbacks of memberlist only look; they never wait.
package gossip
