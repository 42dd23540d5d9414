package main

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/sheepdog-go/sheepdog/nbd"
)

// TestServersKnowOfEachOther: a reader of one does not spin while clients of the other ask for something, nor while a peer does.
func TestServersKnowOfEachOther(t *testing.T) {
	peers, observed := true, 0
	cfg := nbd.Config{Quiet: func() bool { return peers }, Observe: func(nbd.Op, uint64, time.Duration, uint32) { observed++ }}
	var a, b atomic.Bool
	one, two := besides(cfg, &a, &b), besides(cfg, &b, &a)
	if !one.Quiet() || !two.Quiet() {
		t.Error("not quiet at first")
	}
	one.Observe(nbd.OpRead, 4096, 0, 0)
	if !one.Quiet() {
		t.Error("disturbed by its own clients")
	}
	if two.Quiet() {
		t.Error("it does not hear of the other's clients")
	}
	if !two.Quiet() {
		t.Error("it hears of them twice")
	}
	if peers = false; one.Quiet() || two.Quiet() {
		t.Error("it does not hear of peers")
	}
	if observed != 1 {
		t.Errorf("%d requests observed", observed)
	}
}
