package client

import (
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/objstore"
)

// Sizes of the on-disk format: what requests are cut by.
const (
	BlockSize  = objstore.BlockSize
	ObjectSize = objstore.ObjectSize

	blockSize  = BlockSize
	objectSize = ObjectSize
)

// Hole says that an extent holds no bytes: it reads as zeros.
func Hole(e wire.Extent) bool {
	s := objstore.State(e.State)
	return s == objstore.Absent || s == objstore.Zero
}
