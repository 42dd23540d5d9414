// Package vfs is the edge between the store and the disk: the few calls the
// store makes, the operating system's implementation of them (OS), and in
// sub-package simfs a simulated disk on which power can be cut.
//
// Names are paths as the operating system takes them. Errors wrap what
// package fs and package syscall define.
package vfs

import (
	"errors"
	"io"
)

// ErrWouldBlock is ReadNowait's answer where the bytes are not in memory.
var ErrWouldBlock = errors.New("would block")

// FS is a file system. A nil error of Create, CreateTemp, Link, Mkdir,
// Rename or Remove promises nothing about a power cut; SyncDir of the
// directory does.
type FS interface {
	// Open opens an existing file for reading and writing.
	Open(name string) (File, error)
	// Create makes a new file; fs.ErrExist if the name is taken.
	Create(name string) (File, error)
	// CreateTemp makes a file that has no name yet and goes with its last
	// descriptor unless Link gives it one.
	CreateTemp(dir string) (File, error)
	// Link names a file of CreateTemp; fs.ErrExist if the name is taken.
	Link(f File, name string) error
	Mkdir(name string) error // fs.ErrExist if it is there
	Remove(name string) error
	Rename(old, new string) error
	// ReadDir returns the names in a directory, sorted.
	ReadDir(name string) ([]string, error)
	// SyncDir makes the directory's names durable.
	SyncDir(name string) error
	// SyncFS makes everything on the file system that holds name durable:
	// data, sizes, names.
	SyncFS(name string) error
	// Statfs says how much room the file system of name has.
	Statfs(name string) (Stat, error)
	// Lock takes the exclusive lock that a file stands for, for as long as
	// this process lives or until Close; an error if somebody holds it.
	Lock(name string) (io.Closer, error)
}

// File is an open file. All calls may be made concurrently.
type File interface {
	// ReadAt and WriteAt are as package io defines them.
	io.ReaderAt
	io.WriterAt
	// ReadNowait reads what is in memory and fails with ErrWouldBlock
	// where some of it is not; it may return fewer bytes only at the end.
	ReadNowait(p []byte, off int64) (int, error)
	// ReadDirect reads from the disk, past what memory holds of it. p and
	// off are multiples of 4096, p is aligned to it. Where the file system
	// cannot, it reads as ReadAt does.
	ReadDirect(p []byte, off int64) (int, error)
	// WillRead has the system begin to read a range into memory, and does not
	// wait for it. It promises nothing.
	WillRead(off, n int64) error
	// Datasync makes the bytes written so far durable, and the size.
	Datasync() error
	// StartWriteBack has the system begin to write what was written so far to
	// the disk, and does not wait for it. It promises nothing: whether that
	// went well is Datasync's to say, also where this failed.
	StartWriteBack() error
	// WriteBackError is the error of a write-back that this descriptor has
	// not been told of, also where it was behind a SyncFS that succeeded. It
	// waits for write-back that is under way, and starts none.
	WriteBackError() error
	// Forget has the system drop what it keeps in memory of a range, but for
	// what is not on the disk yet. It promises nothing.
	Forget(off, n int64) error
	// Punch gives the space of a range back; it reads as zeros then.
	Punch(off, n int64) error
	// Allocate makes sure that the range has its space.
	Allocate(off, n int64) error
	Size() (int64, error)
	SetXattr(name, value string) error
	GetXattr(name string) (string, error)
	Close() error
}

// Stat is a file system's room.
type Stat struct {
	Total, Free        int64 // bytes; Free is what this process may use
	Inodes, InodesFree int64 // 0, 0 where the file system does not count them
}
