// Package wire is how nodes and clients of the cluster talk: frames on TCP connections, many requests in flight on each.
//
// A connection begins with four bytes that say what it is for (see Mux), so that one port serves frames, raft and HTTP. Then come
// frames in both directions:
//
//	 0            4      5      6       8           12          16                24      28         32
//	┌────────────┬──────┬──────┬───────┬───────────┬───────────┬─────────────────┬───────┬──────────┐
//	│ magic SDF1 │ kind │ flags│ status│ meta bytes│ data bytes│ request id      │ group │ head crc │
//	├────────────┴──────┴──────┴───────┼───────────┴───────────┼─────────────────┼───────┴──────────┤
//	│ term (32)                        │ from (40)             │ to (48)         │ meta (56 …)      │
//	└──────────────────────────────────┴───────────────────────┴─────────────────┴──────────────────┘
//	meta: what the kind says, little endian; data: block contents, guarded by checksums that stand in the meta
//
// The head crc is a CRC-32C of the 56 bytes (with the field itself zero) and of the meta. A frame whose magic, lengths or crc are wrong ends the
// connection: nothing after it can be trusted.
//
// Goroutines: one reader per connection, started by Start, ended by Close or by the peer; one writer per connection, for what the socket did not
// take at once. The reader handles every frame that has arrived, then ends its Batch: one journal write, one write per peer, for all of them.
package wire
