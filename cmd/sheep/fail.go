package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"syscall"

	"github.com/sheepdog-go/sheepdog/cluster/admin"
)

// Exit codes, as Sheepdog's scripts know them.
const (
	exitOK      = 0
	exitFailed  = 1
	exitSystem  = 2 // no connection, or the system failed
	exitExists  = 3
	exitFull    = 4
	exitMissing = 5
	exitUsage   = 64
)

// coded is an error that knows its exit code; text "" prints nothing.
type coded struct {
	code int
	text string
}

func (e *coded) Error() string { return e.text }

func usagef(format string, v ...any) error { return &coded{exitUsage, fmt.Sprintf(format, v...)} }

// systemf is for what this machine refused: a port in use, a directory that cannot be read.
func systemf(format string, v ...any) error {
	return &systemError{fmt.Errorf(format, v...)}
}

type systemError struct{ error }

func (e *systemError) Unwrap() error { return e.error }

// exitCode finds the code of an error.
func exitCode(err error) int {
	var c *coded
	var conn *admin.ConnError
	var sys *systemError
	var op *net.OpError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &c):
		return c.code
	case errors.As(err, &conn), errors.As(err, &sys):
		return exitSystem
	case errors.Is(err, fs.ErrExist):
		return exitExists
	case errors.Is(err, syscall.ENOSPC):
		return exitFull
	case errors.Is(err, fs.ErrNotExist):
		return exitMissing
	case errors.As(err, &op), errors.Is(err, context.DeadlineExceeded):
		return exitSystem
	}
	return exitFailed
}

// errorLine is what is printed of an error: one line, with what to do next where that is known.
func errorLine(err error) string {
	text := strings.Join(strings.Fields(err.Error()), " ")
	var conn *admin.ConnError
	switch {
	case errors.As(err, &conn) && errors.Is(err, syscall.ECONNREFUSED):
		text += "; start a node there with `sheep daemon`, or name another with -a"
	case errors.Is(err, context.Canceled):
		return "interrupted"
	}
	return text
}
