package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// sameSignal is how long a signal may be followed by another one that means the same: some who send one send it to the process and to its group.
const sameSignal = time.Second

// exitOnSecondSignal lets somebody who says it twice have it at once. It is called when the first signal has come.
func exitOnSecondSignal(cleanup func()) {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGINT, syscall.SIGTERM)
	for first := time.Now(); ; {
		<-ch
		if time.Since(first) > sameSignal {
			break
		}
	}
	cleanup()
	fmt.Fprintln(os.Stderr, "stopped without waiting")
	os.Exit(exitFailed)
}
