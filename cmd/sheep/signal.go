package main

import (
	"os"
	"os/signal"
	"syscall"
)

// secondSignal gets the next SIGINT or SIGTERM.
func secondSignal() <-chan os.Signal {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGINT, syscall.SIGTERM)
	return ch
}
