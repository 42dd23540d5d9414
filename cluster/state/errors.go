package state

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

// Errors that no standard kind fits.
var (
	ErrStale       = errors.New("the agreed state has moved on")
	ErrUnformatted = errors.New("Waiting for cluster to be formatted")
	ErrFormatted   = errors.New("the cluster is formatted already")
	ErrWrong       = errors.New("does not belong here")
	ErrTooFew      = errors.New("too few replicas would remain in sync")
)

// Words of the original, which its users know.
const (
	textExists      = "VDI exists already"
	textNoVDI       = "No VDI found"
	textNoTag       = "Failed to find requested tag"
	textUnformatted = "Waiting for cluster to be formatted"
	textIntegerTag  = "Please specify a non-integer value for a snapshot tag name"
)

// Err is the kind of error that a code stands for, nil for OK: what errors.Is finds.
func (c Code) Err() error {
	switch c {
	case OK:
		return nil
	case Stale:
		return ErrStale
	case Exists:
		return fs.ErrExist
	case Missing:
		return fs.ErrNotExist
	case Invalid:
		return fs.ErrInvalid
	case Unformatted:
		return ErrUnformatted
	case Formatted:
		return ErrFormatted
	case Busy:
		return syscall.EBUSY
	case Wrong:
		return ErrWrong
	case TooFew:
		return ErrTooFew
	}
	return fmt.Errorf("unknown result code %d", uint8(c))
}

// Error is a refusal: what kind it is, and why in words.
type Error struct {
	Code Code
	Text string
}

func (e *Error) Error() string { return e.Text }

// Unwrap lets errors.Is see the kind (fs.ErrNotExist, syscall.EBUSY, …).
func (e *Error) Unwrap() error { return e.Code.Err() }

// Err is the result as an error, nil if the command was done.
func (r *Result) Err() error {
	if r.Code == OK {
		return nil
	}
	return &Error{Code: r.Code, Text: r.Error}
}

func refuse(c Code, format string, args ...any) *Error {
	return &Error{Code: c, Text: fmt.Sprintf(format, args...)}
}
