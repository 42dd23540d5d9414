package main

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/sheepdog-go/sheepdog/nbd"
)

// flaky is a backend whose second opening fails after a while.
type flaky struct {
	nbd.Backend
	n  int
	at chan struct{}
	on chan struct{}
}

func (f *flaky) Open(ctx context.Context, name string) (nbd.Device, nbd.ExportInfo, error) {
	if f.n++; f.n == 2 {
		close(f.at)
		<-f.on
		return nil, nbd.ExportInfo{}, errors.New("no")
	}
	return f.Backend.Open(ctx, name)
}

// TestLastClientLeavesDuringAFailedOpen: the last client leaves while another one's opening is under way, which then fails. Without -t the program ends after its last client.
func TestLastClientLeavesDuringAFailedOpen(t *testing.T) {
	mem := nbd.NewMemBackend()
	mem.Add(nbd.ExportInfo{Name: "", Size: 1 << 20})
	f := &flaky{Backend: mem, at: make(chan struct{}), on: make(chan struct{})}
	c := newCounted(f, 0)
	d, _, err := c.Open(context.Background(), "")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { c.Open(context.Background(), ""); close(done) }()
	<-f.at
	d.Close()
	close(f.on)
	<-done
	select {
	case <-c.left:
	case <-time.After(time.Second):
		t.Errorf("%d clients are left, of one that was there, and the program does not hear of it: it never ends", c.open)
	}
}
