package nbd

import (
	"io"
	"testing"
	"testing/synctest"
	"time"
)

// TestSteadyClientIsCutOff: a client that always has 12 reads under way, and takes 16 KiB eight times in each StallTimeout.
func TestSteadyClientIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const stall, size, depth = time.Minute, 4096, 12
		_, w := pipe(t, Config{StallTimeout: stall}, &fakeBackend{info: allCan(1 << 30)})
		w.greet(fixed)
		w.wants(w.option(optGo, infoData("x")), repAck)
		for i := range uint64(depth) {
			w.send(request(cmdRead, 0, i, 0, size))
		}
		start := time.Now()
		reply := make([]byte, simpleReplySize+size)
		for n := range 64 { // eight times StallTimeout
			time.Sleep(stall / 8)
			for range 4 {
				if _, err := io.ReadFull(w.nc, reply); err != nil {
					t.Fatalf("cut off after %v and %d replies: %v", time.Since(start), 4*n, err)
				}
			}
			for range 4 {
				if _, err := w.nc.Write(request(cmdRead, 0, 1, 0, size)); err != nil {
					t.Fatalf("cut off after %v and %d replies: %v", time.Since(start), 4*n, err)
				}
			}
		}
	})
}
