package wire

// Request is a client's request to the primary of a group: KindRead, KindWrite, KindZero, KindTrim, KindFlush or KindExtents. It is the same
// whether it came by a connection or from a client in the primary's own process, which saves the detour through a socket.
type Request struct {
	Kind  Kind
	Flags uint8 // FlagFUA, FlagAgain
	Group uint32
	Term  uint64 // the group's, as the client knows it: fences
	IO    IO     // CRCs must stay valid until the answer

	// Client and Epoch name the client's connection (R15); a request of a superseded one is refused.
	Client string
	Epoch  uint64
	// Crossed says that it came by a connection, on whose way bytes may change: the primary compares a write's data with its sums.
	Crossed bool

	// Data is the payload of a write. The primary retains Owner for as long as it needs the bytes.
	Data  []byte
	Owner Holder
	// Dst takes the bytes of a read; len(Dst) == IO.Len.
	Dst []byte

	// The outcome, valid when To.Answered is called.
	Status  Status
	Message string   // a sentence, where the status alone does not say what was wrong
	Done    Done     // writes: the number. With StatusNotPrimary, -ReadOnly, -Fenced, -OldTerm, -Behind: Done.Index is the map index to look at
	Extents []Extent // KindExtents; appended to what the slice's capacity offers
	// Sole, with a change's Done: no replica but this primary's has it, or is being brought up to date. Whoever comes later has it durable before it
	// joins (R11), so a client in the primary's own process has no use for a copy of it (R17). It crosses no connection.
	Sole bool

	// To is told the outcome, exactly once, without any lock held.
	To Answerer

	// Hold is for the primary's own use while the request is under way.
	Hold any
}

// Answerer is told that a request has its outcome. It may submit more to b, which its caller ends.
type Answerer interface {
	Answered(r *Request, b *Batch)
}

// Complete passes the outcome on; so a Request is its own Completer.
func (r *Request) Complete(b *Batch) { r.To.Answered(r, b) }

// Submitter is a primary in the same process. Submit does not block; what it gathers in b is done when the caller ends b.
type Submitter interface {
	Submit(r *Request, b *Batch)
}
