package attach

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A device has one process that serves it: the one that listens on an abstract unix socket named after the device. Such a name has no file: it is free again
// when the process ends, however it ends. Through the same socket the process is told to detach, so that it does not bring back what the administrator takes away.
//
//	-d:     "detach\n"        ─▶  process
//	-d:     "" or a sentence  ◀─  when it is done, or why not
func holdName(index int) string { return fmt.Sprintf("@sheep-nbd/nbd%d", index) }

const (
	wordDetach    = "detach\n"
	detachTimeout = 30 * time.Second
	sentenceMax   = 4096
)

// errHeld says that another process serves the device.
var errHeld = errors.New("another sheep-nbd serves it")

// holder is the right to serve a device.
type holder struct {
	l    net.Listener
	asks chan chan<- error // somebody wants the device detached, and an answer
	done chan struct{}
	once sync.Once
}

// hold takes the right.
func hold(index int) (*holder, error) {
	l, err := net.Listen("unix", holdName(index))
	if err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("%s: %w", DeviceName(index), errHeld)
		}
		return nil, fmt.Errorf("%s: %w", DeviceName(index), err)
	}
	h := &holder{l: l, asks: make(chan chan<- error), done: make(chan struct{})}
	go h.accept()
	return h, nil
}

// release gives it back.
func (h *holder) release() {
	h.once.Do(func() {
		close(h.done)
		h.l.Close()
	})
}

// accept hears one asker at a time.
func (h *holder) accept() {
	for {
		c, err := h.l.Accept()
		if err != nil {
			return
		}
		h.hear(c)
	}
}

func (h *holder) hear(c net.Conn) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Second))
	word := make([]byte, len(wordDetach))
	if _, err := io.ReadFull(c, word); err != nil || string(word) != wordDetach {
		return
	}
	answer := make(chan error, 1)
	select {
	case h.asks <- answer:
	case <-h.done:
		return
	}
	select {
	case err := <-answer:
		c.SetDeadline(time.Now().Add(time.Second))
		if err != nil {
			io.WriteString(c, err.Error())
		}
	case <-h.done: // it ended, detached or not: the asker looks
	}
}

// askHolder tells the process that serves a device to detach it. False: there is none.
func askHolder(index int) (asked bool, err error) {
	c, err := net.Dial("unix", holdName(index))
	if err != nil {
		return false, nil
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(detachTimeout))
	if _, err := io.WriteString(c, wordDetach); err != nil {
		return false, nil
	}
	text, err := io.ReadAll(io.LimitReader(c, sentenceMax))
	if err != nil {
		return true, fmt.Errorf("wait for the sheep-nbd that serves %s: %w", DeviceName(index), err)
	}
	if s := strings.TrimSpace(string(text)); s != "" {
		return true, errors.New(s)
	}
	return true, nil
}

// Served says whether a process serves the device now.
func Served(index int) bool {
	c, err := net.Dial("unix", holdName(index))
	if err != nil {
		return false
	}
	c.Close()
	return true
}
