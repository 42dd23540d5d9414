package nbd

import "github.com/pojntfx/go-nbd/pkg/protocol"

// The specification's numbers (proto.md of the nbd project; the extended headers are from its
// extension-ext-header branch). Those that go-nbd names are used from there; nothing here is our choice.

// Handshake flags, server to client, and the client's answer.
const (
	flagFixedNewstyle = protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE
	flagNoZeroes      = uint16(1 << 1)

	clientFixedNewstyle = uint32(1 << 0)
	clientNoZeroes      = uint32(1 << 1)
)

// Options.
const (
	optExportName      = uint32(1)
	optAbort           = protocol.NEGOTIATION_ID_OPTION_ABORT
	optList            = protocol.NEGOTIATION_ID_OPTION_LIST
	optStartTLS        = uint32(5)
	optInfo            = protocol.NEGOTIATION_ID_OPTION_INFO
	optGo              = protocol.NEGOTIATION_ID_OPTION_GO
	optStructuredReply = uint32(8)
	optListMetaContext = uint32(9)
	optSetMetaContext  = uint32(10)
	optExtendedHeaders = uint32(11)
)

// Option replies.
const (
	repAck         = protocol.NEGOTIATION_TYPE_REPLY_ACK
	repServer      = protocol.NEGOTIATION_TYPE_REPLY_SERVER
	repInfo        = protocol.NEGOTIATION_TYPE_REPLY_INFO
	repMetaContext = uint32(4)

	repErrUnsup         = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED
	repErrPolicy        = uint32(1<<31 | 2)
	repErrInvalid       = uint32(1<<31 | 3)
	repErrPlatform      = uint32(1<<31 | 4)
	repErrTLSReqd       = uint32(1<<31 | 5)
	repErrUnknown       = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN
	repErrShutdown      = uint32(1<<31 | 7)
	repErrTooBig        = uint32(1<<31 | 9)
	repErrExtHeaderReqd = uint32(1<<31 | 10)
)

// Information types of INFO and GO.
const (
	infoExport      = protocol.NEGOTIATION_TYPE_INFO_EXPORT
	infoName        = protocol.NEGOTIATION_TYPE_INFO_NAME
	infoDescription = protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION
	infoBlockSize   = protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE
)

// Transmission flags.
const (
	flagHasFlags        = protocol.NEGOTIATION_REPLY_FLAGS_HAS_FLAGS
	flagReadOnly        = uint16(1 << 1)
	flagSendFlush       = uint16(1 << 2)
	flagSendFUA         = uint16(1 << 3)
	flagRotational      = uint16(1 << 4)
	flagSendTrim        = uint16(1 << 5)
	flagSendWriteZeroes = uint16(1 << 6)
	flagSendDF          = uint16(1 << 7)
	flagCanMultiConn    = protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN
	flagSendCache       = uint16(1 << 10)
	flagSendFastZero    = uint16(1 << 11)
	flagBlockStatusLoad = uint16(1 << 12) // NBD_FLAG_BLOCK_STAT_PAYLOAD
)

// Commands.
const (
	cmdRead        = protocol.TRANSMISSION_TYPE_REQUEST_READ
	cmdWrite       = protocol.TRANSMISSION_TYPE_REQUEST_WRITE
	cmdDisc        = protocol.TRANSMISSION_TYPE_REQUEST_DISC
	cmdFlush       = uint16(3)
	cmdTrim        = uint16(4)
	cmdCache       = uint16(5)
	cmdWriteZeroes = uint16(6)
	cmdBlockStatus = uint16(7)
)

// Command flags.
const (
	cmdFlagFUA        = uint16(1 << 0)
	cmdFlagNoHole     = uint16(1 << 1)
	cmdFlagDF         = uint16(1 << 2)
	cmdFlagReqOne     = uint16(1 << 3)
	cmdFlagFastZero   = uint16(1 << 4)
	cmdFlagPayloadLen = uint16(1 << 5)
)

// Magics of the transmission phase.
const (
	magicRequest         = protocol.TRANSMISSION_MAGIC_REQUEST
	magicExtendedRequest = uint32(0x21e41c71)
	magicSimpleReply     = protocol.TRANSMISSION_MAGIC_REPLY
	magicChunk           = uint32(0x668e33ef)
	magicExtendedReply   = uint32(0x6e8a278c)
)

// Reply chunks.
const (
	chunkFlagDone = uint16(1 << 0)

	chunkNone           = uint16(0)
	chunkOffsetData     = uint16(1)
	chunkOffsetHole     = uint16(2)
	chunkBlockStatus    = uint16(5)
	chunkBlockStatusExt = uint16(6)
	chunkError          = uint16(1<<15 | 1)
)

// Sizes of what is on the wire.
const (
	requestSize         = 28
	extendedRequestSize = 32
	simpleReplySize     = 16
	chunkHeaderSize     = 20
	extendedReplySize   = 32

	stringMax = 4096 // "Strings" in proto.md: longer ones MUST be refused
)

// Flags of base:allocation extents, for [Request.AddExtent].
const (
	StateHole uint64 = 1 << 0 // not allocated: a write there may meet ENOSPC
	StateZero uint64 = 1 << 1 // reads as zeros
)

// StateDirty is the flag of qemu:dirty-bitmap extents: the range changed.
const StateDirty uint64 = 1 << 0

// BaseAllocation is the one metadata context that every export has.
const BaseAllocation = "base:allocation"

// DefaultPort is the port that IANA gave to NBD.
const DefaultPort = 10809
