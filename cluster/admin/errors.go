package admin

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"syscall"

	"github.com/sheepdog-go/sheepdog/cluster/state"
)

// Error is an error as it travels: a code that programs tell apart and a sentence.
type Error struct {
	Code string `json:"code"`
	Text string `json:"error"`
}

func (e *Error) Error() string { return e.Text }

// Unwrap lets errors.Is find the standard kind behind the code.
func (e *Error) Unwrap() error {
	for _, k := range kinds {
		if k.code == e.Code {
			return k.err
		}
	}
	return nil
}

// errTooSlow stands for a cluster that could not agree in time.
var errTooSlow = errors.New("no answer in time")

// kinds maps codes to the errors they stand for and to HTTP's status codes. Order matters when an error is many things: the first counts.
var kinds = []struct {
	code string
	err  error
	http int
}{
	{"unformatted", state.ErrUnformatted, http.StatusConflict},
	{"formatted", state.ErrFormatted, http.StatusConflict},
	{"stale", state.ErrStale, http.StatusConflict},
	{"wrong", state.ErrWrong, http.StatusConflict},
	{"exists", fs.ErrExist, http.StatusConflict},
	{"missing", fs.ErrNotExist, http.StatusNotFound},
	{"busy", syscall.EBUSY, http.StatusLocked},
	{"full", syscall.ENOSPC, http.StatusInsufficientStorage},
	{"invalid", fs.ErrInvalid, http.StatusBadRequest},
	{"refused", fs.ErrPermission, http.StatusForbidden},
	{"timeout", errTooSlow, http.StatusGatewayTimeout},
}

// encodeError finds the code of err.
func encodeError(err error) (*Error, int) {
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			return &Error{k.code, err.Error()}, k.http
		}
	}
	return &Error{"failed", err.Error()}, http.StatusInternalServerError
}

// ConnError says that a node could not be asked at all.
type ConnError struct {
	Addr string
	Err  error
}

func (e *ConnError) Error() string {
	return fmt.Sprintf("failed to connect to %s: %v", e.Addr, rootCause(e.Err))
}
func (e *ConnError) Unwrap() error { return e.Err }

// rootCause strips what net/http and net put around the one thing people want to read.
func rootCause(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}
