package client

// Sizes of the on-disk format: what requests are cut by.
const (
	BlockSize  = 4096
	ObjectSize = 4 << 20

	blockSize  = BlockSize
	objectSize = ObjectSize
)
