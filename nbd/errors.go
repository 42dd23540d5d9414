package nbd

import (
	"errors"
	"io/fs"
	"syscall"
)

// Error numbers of the protocol. They are Linux's, fixed by the specification.
const (
	codeOK        = uint32(0)
	codeEPERM     = uint32(1)
	codeEIO       = uint32(5)
	codeENOMEM    = uint32(12)
	codeEINVAL    = uint32(22)
	codeENOSPC    = uint32(28)
	codeEOVERFLOW = uint32(75)
	codeENOTSUP   = uint32(95)
	codeESHUTDOWN = uint32(108)
)

// ErrServerClosed is what Serve returns after Shutdown or Close.
var ErrServerClosed = errors.New("nbd: server closed")

// errorCode is the one place where errors become NBD errors. What it doesn't know is EIO.
func errorCode(err error, fastZero bool) uint32 {
	if err == nil {
		return codeOK
	}
	is := func(targets ...error) bool {
		for _, t := range targets {
			if errors.Is(err, t) {
				return true
			}
		}
		return false
	}
	switch {
	case is(syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG):
		return codeENOSPC
	case is(fs.ErrPermission, syscall.EROFS):
		return codeEPERM
	case is(syscall.EINVAL, fs.ErrInvalid):
		return codeEINVAL
	case is(syscall.ENOMEM):
		return codeENOMEM
	case is(syscall.EOVERFLOW):
		return codeEOVERFLOW
	case is(syscall.ESHUTDOWN):
		return codeESHUTDOWN
	case is(errors.ErrUnsupported) && fastZero:
		return codeENOTSUP // only FAST_ZERO may be answered so
	case is(errors.ErrUnsupported):
		return codeEINVAL
	}
	return codeEIO
}

// optionError chooses the option reply for an error of a Backend.
func optionError(err error) uint32 {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return repErrUnknown
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EBUSY):
		return repErrPolicy
	case errors.Is(err, syscall.ESHUTDOWN):
		return repErrShutdown
	}
	return repErrPlatform
}

// protocolError ends a connection: the client broke the protocol in a way that leaves no place to go on from.
type protocolError struct{ what string }

func (e *protocolError) Error() string { return "nbd: client broke the protocol: " + e.what }
