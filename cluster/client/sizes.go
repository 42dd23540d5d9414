package client

// Sizes of the on-disk format.
const (
	blockSize  = 4096
	objectSize = 4 << 20
)
