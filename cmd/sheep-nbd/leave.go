package main

import (
	"context"
	"fmt"
	"sync"
	"syscall"

	"github.com/sheepdog-go/sheepdog/nbd"
)

// counted is a backend that knows how many clients have the export open.
type counted struct {
	nbd.Backend
	most int // at a time; 0: any number

	mu   sync.Mutex
	open int
	came bool          // somebody had it open
	left chan struct{} // gets a value when the last client leaves
}

func newCounted(b nbd.Backend, most int) *counted {
	return &counted{Backend: b, most: most, left: make(chan struct{}, 1)}
}

// Info says that several connections make sense only where they are let in.
func (c *counted) Info(ctx context.Context, name string) (nbd.ExportInfo, error) {
	info, err := c.Backend.Info(ctx, name)
	info.MultiConn = info.MultiConn && c.most != 1
	return info, err
}

// Open lets a client in, if there is room.
func (c *counted) Open(ctx context.Context, name string) (nbd.Device, nbd.ExportInfo, error) {
	c.mu.Lock()
	full := c.most > 0 && c.open >= c.most
	if !full {
		c.open++
	}
	c.mu.Unlock()
	if full {
		return nil, nbd.ExportInfo{}, fmt.Errorf("%d clients are connected already (-e): %w", c.most, syscall.EBUSY)
	}
	d, info, err := c.Backend.Open(ctx, name)
	if err != nil {
		c.leave()
		return nil, info, err
	}
	c.mu.Lock()
	c.came = true
	c.mu.Unlock()
	info.MultiConn = info.MultiConn && c.most != 1
	return nbd.OnClose(d, func(error) { c.leave() }), info, nil
}

// leave counts one client less. When nobody is left of those that came, the program ends, unless it stays.
func (c *counted) leave() {
	c.mu.Lock()
	c.open--
	last := c.open == 0 && c.came
	c.mu.Unlock()
	if last {
		select {
		case c.left <- struct{}{}:
		default:
		}
	}
}
