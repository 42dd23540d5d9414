package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Commands and Maps are written as one byte, the version of the format, followed by JSON: they are small, seldom, and a person must be able to
// read them in the log of a cluster that went wrong.
//
//	┌─────────┬──────────────┐
//	│ 1 byte  │ JSON         │
//	│ version │ of the value │
//	└─────────┴──────────────┘
//
// A field that is not known is refused, like a version that is not known: a node that skips what it does not understand would
// come to hold another state than its peers.
const formatVersion byte = 1

// EncodeCommand writes a command as it goes into raft's log.
func EncodeCommand(c *Command) ([]byte, error) { return encode("command", c) }

// DecodeCommand reads what EncodeCommand wrote.
func DecodeCommand(b []byte) (*Command, error) {
	c := new(Command)
	if err := decode("command", b, c); err != nil {
		return nil, err
	}
	return c, nil
}

// EncodeMap writes a Map, as for raft's snapshots.
func EncodeMap(m *Map) ([]byte, error) { return encode("map", m) }

// DecodeMap reads what EncodeMap wrote, checks that it makes sense, and derives what is not written.
func DecodeMap(b []byte) (*Map, error) {
	m := new(Map)
	if err := decode("map", b, m); err != nil {
		return nil, err
	}
	if err := m.derive(); err != nil {
		return nil, fmt.Errorf("decode map at index %d: %w", m.Index, err)
	}
	return m, nil
}

func encode(what string, v any) ([]byte, error) {
	b := bytes.NewBuffer([]byte{formatVersion})
	w := json.NewEncoder(b)
	w.SetEscapeHTML(false)
	if err := w.Encode(v); err != nil {
		return nil, fmt.Errorf("encode %s: %w", what, err)
	}
	return b.Bytes(), nil
}

func decode(what string, b []byte, v any) error {
	if len(b) == 0 {
		return fmt.Errorf("decode %s: it is empty", what)
	}
	if b[0] != formatVersion {
		return fmt.Errorf("decode %s: version %d, this program knows %d", what, b[0], formatVersion)
	}
	r := json.NewDecoder(bytes.NewReader(b[1:]))
	r.DisallowUnknownFields()
	if err := r.Decode(v); err != nil {
		return fmt.Errorf("decode %s: %w", what, err)
	}
	if _, err := r.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("decode %s: something follows it", what)
	}
	return nil
}
