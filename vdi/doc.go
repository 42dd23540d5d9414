// Package vdi makes network block devices of virtual disk images: it is what stands between package nbd, which knows the protocol, and package
// cluster/client, which knows where the blocks are.
//
// An export is named NAME for the working VDI, which is opened for writing by one client at a time (a node's own exports are one client), or NAME:TAG or
// NAME:NUMBER for a snapshot, which anybody may read. What the directory says of them is all that LIST and INFO need; nothing is opened for these.
//
//	nbd.Request ─▶ Device.Submit ─▶ client.Op ─▶ pieces, one per object ─▶ primaries ─▶ Op.Done ─▶ Request.Queue
//
// A Device is one connection's: all its requests that arrived together share a wire.Batch, so that they cost one write to a journal or a peer. Its Disk is shared
// with other connections to the same VDI, so that a flush on any of them covers all: exports can say CAN_MULTI_CONN.
//
// BLOCK_STATUS tells base:allocation, and for each snapshot beneath an export what changed since it, as qemu:dirty-bitmap:TAG (dirty.go).
//
// Nothing here waits: a request that the cluster can't serve now stays with the client until it can. Package vdi starts no goroutines.
package vdi
