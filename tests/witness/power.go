package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"unsafe"
)

const (
	recordSize  = 4096
	recordBatch = 16 // records between two acknowledgements
)

// powerMain: a witness of power cuts, for trying the rig itself.
//
//	witness power write FILE sync|nosync|direct N   prints "ACK n" after each batch; sync means it, the others lie:
//	                                                nosync leaves it in the page cache, direct overwrites durable zeros
//	                                                with O_DIRECT and never flushes the disk's own cache
//	witness power check FILE N                      fails if one of the first N records is not there
func powerMain(args []string) error {
	usage := fmt.Errorf("usage: witness power write FILE sync|nosync|direct N | check FILE N")
	if len(args) < 3 {
		return usage
	}
	n, err := strconv.Atoi(args[len(args)-1])
	if err != nil || n < 0 {
		return usage
	}
	switch {
	case args[0] == "write" && len(args) == 4:
		return powerWrite(args[1], args[2], n)
	case args[0] == "check" && len(args) == 3:
		return powerCheck(args[1], n)
	}
	return usage
}

// aligned returns n bytes on a page boundary, as O_DIRECT asks.
func aligned(n int) []byte {
	b := make([]byte, n+recordSize)
	skip := int(recordSize-uintptr(unsafe.Pointer(&b[0]))%recordSize) % recordSize
	return b[skip : skip+n]
}

func record(i int) []byte {
	b := aligned(recordSize)
	for j := 0; j < recordSize; j += 8 {
		binary.LittleEndian.PutUint64(b[j:], uint64(i+1)*0x9E3779B97F4A7C15+uint64(j))
	}
	return b
}

func powerWrite(name, mode string, n int) error {
	flags := os.O_RDWR | os.O_CREATE
	if mode == "direct" {
		flags |= syscall.O_DIRECT
	}
	f, err := os.OpenFile(name, flags, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if mode == "direct" {
		if _, err := f.Write(aligned(n * recordSize)); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
	}
	for i := range n {
		if _, err := f.WriteAt(record(i), int64(i)*recordSize); err != nil {
			return err
		}
		if i%recordBatch != recordBatch-1 {
			continue
		}
		if mode == "sync" {
			if err := syscall.Fdatasync(int(f.Fd())); err != nil {
				return err
			}
		}
		fmt.Printf("ACK %d\n", i+1)
	}
	fmt.Println("END") // wait for the cut with the file open
	cut := make(chan os.Signal, 1)
	signal.Notify(cut, syscall.SIGTERM, os.Interrupt)
	<-cut
	return nil
}

func powerCheck(name string, acked int) error {
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	there := func(i int) bool {
		return (i+1)*recordSize <= len(data) && bytes.Equal(data[i*recordSize:(i+1)*recordSize], record(i))
	}
	kept := 0
	for i := range acked {
		if there(i) {
			kept++
		}
	}
	fmt.Printf("CHECK acked=%d kept=%d\n", acked, kept)
	if kept < acked {
		return fmt.Errorf("%s: %d of %d acknowledged records are lost", name, acked-kept, acked)
	}
	return nil
}
