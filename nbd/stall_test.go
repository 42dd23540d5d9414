package nbd

import (
	"context"
	"io"
	"testing"
	"testing/synctest"
	"time"
)

// TestShutdownEndsWhereARequestWasHalfThere: the rest of it comes while the server drains, and then nothing more.
func TestShutdownEndsWhereARequestWasHalfThere(t *testing.T) {
	for _, quiet := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			const size, drain = 128 << 10, 500 * time.Millisecond
			s, w := pipe(t, Config{DrainTimeout: drain, QuietDrain: quiet}, &fakeBackend{info: allCan(1 << 30)})
			w.greet(fixed)
			w.wants(w.option(optGo, infoData("x")), repAck)
			w.send(request(cmdWrite, 0, 1, 0, size), make([]byte, size/2))
			synctest.Wait() // the reader sleeps in the middle of the payload
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			start, done := time.Now(), make(chan error, 1)
			go func() { done <- s.Shutdown(ctx) }()
			synctest.Wait()
			w.send(make([]byte, size/2))
			if code := w.simple(1); code != 0 {
				t.Errorf("quiet %v: the write was answered with %d", quiet, code)
			}
			if err := <-done; err != nil || time.Since(start) > 2*drain {
				t.Errorf("quiet %v: Shutdown took %v: %v", quiet, time.Since(start), err)
			}
		})
	}
}

// TestWhoTakesLittleIsNotCutOff: a long reply that the client takes slowly, but all the time.
func TestWhoTakesLittleIsNotCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const stall, size, step = time.Minute, 8 << 20, 64 << 10
		_, w := pipe(t, Config{StallTimeout: stall}, &fakeBackend{info: allCan(1 << 30)})
		w.greet(fixed)
		w.wants(w.option(optGo, infoData("x")), repAck)
		w.send(request(cmdRead, 0, 1, 0, size))
		w.simple(1)
		for got := 0; got < size; got += step {
			time.Sleep(stall / 8)
			if _, err := io.ReadFull(w.nc, make([]byte, step)); err != nil {
				t.Fatalf("cut off after %d bytes: %v", got, err)
			}
		}
	})
}

// TestWhoWaitsForUsDoesNotStall: a request's header comes in two parts, and then it is the server that has no room for it, for longer than a client may stall.
func TestWhoWaitsForUsDoesNotStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const stall, size = time.Minute, 1 << 20
		held := make(chan *Request, 2)
		b := &fakeBackend{info: allCan(1 << 30), submit: func(r *Request) { held <- r }}
		_, w := pipe(t, Config{StallTimeout: stall, MaxConnBytes: size}, b)
		w.greet(fixed)
		w.wants(w.option(optGo, infoData("x")), repAck)
		w.send(request(cmdWrite, 0, 1, 0, size), make([]byte, size))
		first := <-held
		head := request(cmdWrite, 0, 2, 0, size)
		w.send(head[:10])
		synctest.Wait()
		go w.nc.Write(append(head[10:], make([]byte, size)...))
		time.Sleep(2 * stall)
		first.Done(nil)
		w.simple(1)
		(<-held).Done(nil)
		if code := w.simple(2); code != 0 {
			t.Errorf("answered with %d", code)
		}
	})
}
