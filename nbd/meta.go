package nbd

import (
	"encoding/binary"
	"strings"
)

// contextsMax bounds how many contexts a client may select: each BLOCK_STATUS answers for all of them.
const contextsMax = 32

// metaRequest is the data of LIST_META_CONTEXT and SET_META_CONTEXT.
//
//	| name length 4 | name | count 4 | (length 4 | query) ... |
type metaRequest struct {
	name    string
	queries []string
}

func parseMeta(data []byte) (q metaRequest, ok bool) {
	p := payloadReader{b: data}
	q.name = p.text()
	for n := p.uint32(); n > 0 && !p.bad; n-- { // each query takes 4 bytes of an option that is bounded
		q.queries = append(q.queries, p.text())
	}
	return q, p.end()
}

// metaContext answers both options. SET replaces what was selected, also when it fails.
func (h *handshake) metaContext(id uint32, data []byte) error {
	set := id == optSetMetaContext
	if set {
		h.metaExport, h.contexts = "", nil
	}
	if h.mode == simpleReplies && set {
		return h.fail(id, repErrInvalid, "structured replies come first")
	}
	q, ok := parseMeta(data)
	if !ok {
		return h.fail(id, repErrInvalid, "malformed name or list of queries")
	}
	info, err := h.lookup(q.name)
	if err != nil {
		return h.failLookup(id, q.name, err)
	}
	var found []metaContext
	for _, name := range append([]string{BaseAllocation}, info.Contexts...) {
		if validString(name) && q.matches(name, set) {
			found = append(found, metaContext{name: name})
		}
	}
	if set && len(found) > contextsMax {
		return h.fail(id, repErrTooBig, "too many metadata contexts")
	}
	for i := range found {
		if set {
			found[i].id = uint32(i) // its index, so that a BLOCK_STATUS with a payload needs no search
		}
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], found[i].id)
		h.put(id, repMetaContext, b[:], []byte(found[i].name))
	}
	if set {
		h.metaExport, h.contexts = q.name, found
	}
	return h.ack(id)
}

// matches tells whether a query asks for this context. No query at all lists everything, and selects nothing. A query that
// ends with a colon lists all that begins so, and selects nothing. What is not known is ignored.
func (q *metaRequest) matches(name string, set bool) bool {
	if len(q.queries) == 0 {
		return !set
	}
	for _, s := range q.queries {
		if s == name || !set && strings.HasSuffix(s, ":") && strings.HasPrefix(name, s) {
			return true
		}
	}
	return false
}
