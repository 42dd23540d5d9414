package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/sheepdog-go/sheepdog/cluster/admin"
	"github.com/sheepdog-go/sheepdog/cluster/client"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
	"github.com/sheepdog-go/sheepdog/cmd/sheep/units"
	"github.com/sheepdog-go/sheepdog/vdi"
)

const (
	chunkBytes     = 1 << 20
	chunksInFlight = 4
	connectTimeout = 15 * time.Second
	closeTimeout   = 15 * time.Second
)

// span is the part of a VDI that a command is about.
type span struct{ offset, length uint64 }

// spanArguments reads [OFFSET [LENGTH]]; whole says that no length was given.
func spanArguments(c *cli.Context) (sp span, whole bool, err error) {
	if err := arguments(c, "NAME", "[OFFSET", "[LENGTH]]"); err != nil {
		return sp, false, err
	}
	if text := c.Args().Get(1); c.NArg() > 1 {
		if sp.offset, err = units.ParseSize(text); err != nil {
			return sp, false, usagef("Offset: %v", err)
		}
	}
	if c.NArg() < 3 {
		return sp, true, nil
	}
	if sp.length, err = units.ParseSize(c.Args().Get(2)); err != nil {
		return sp, false, usagef("Length: %v", err)
	}
	return sp, false, nil
}

// withDisk opens a VDI as a client of its own: data does not go through the node that is asked for the map.
func (s *shell) withDisk(c *cli.Context, snap string, readOnly bool, f func(ctx context.Context, d *client.Disk) error) (err error) {
	addr, err := address(c)
	if err != nil {
		return err
	}
	ctx := c.Context
	name := c.Args().First()
	host, _ := os.Hostname()
	id := fmt.Sprintf("sheep-%d-%x", os.Getpid(), time.Now().UnixNano())
	log := slog.New(slog.DiscardHandler)
	if err := s.reachable(c, name, snap); err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	w, err := client.Watch(wait, client.WatchConfig{Nodes: []string{addr}, Net: wire.TCP{}, ID: id, Logger: log})
	if err != nil {
		return systemf("%w", err)
	}
	defer w.Close()
	cl, err := client.New(client.Config{Maps: w, Net: wire.TCP{}, Propose: w.Propose, Latest: w.Latest, ID: id, Owner: fmt.Sprintf("sheep %d on %s", os.Getpid(), host), Logger: log})
	if err != nil {
		return err
	}
	defer cl.Close()
	d, err := cl.Open(wait, name, snap, client.OpenOptions{ReadOnly: readOnly})
	if err != nil {
		return fmt.Errorf("Failed to open VDI %s: %w", name, err)
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		if closed := d.Close(end); err == nil {
			err = closed
		}
	}()
	return f(ctx, d)
}

// reachable finds out with one short question whether there is a node and such a VDI, for a quick and clear answer.
func (s *shell) reachable(c *cli.Context, name, snap string) error {
	return s.ask(c, func(ctx context.Context, a *admin.Client) error {
		m, err := a.Map(ctx)
		if err != nil {
			return err
		}
		_, err = lookup(m, name, snap)
		return err
	})
}

func (s *shell) vdiRead(c *cli.Context) error {
	sp, whole, err := spanArguments(c)
	if err != nil {
		return err
	}
	return s.withDisk(c, c.String("snapshot"), true, func(ctx context.Context, d *client.Disk) error {
		size := d.Size()
		if sp.offset >= size {
			return fmt.Errorf("Failed to read VDI %s: offset %d is past its end at %d", d.Name(), sp.offset, size)
		}
		if whole || sp.length > size-sp.offset {
			sp.length = size - sp.offset
		}
		bar := s.dataProgress("reading", s.stdout)
		defer bar.end()
		stream := vdi.NewStream(ctx, d)
		err := inOrder(sp, func(off uint64, n int) ([]byte, error) {
			buf := make([]byte, n)
			_, err := stream.ReadAt(buf, int64(off))
			return buf, err
		}, func(off uint64, chunk []byte) error {
			bar.set(int64(off-sp.offset)+int64(len(chunk)), int64(sp.length))
			_, err := s.out.Write(chunk)
			return err
		})
		if err != nil {
			return fmt.Errorf("Failed to read VDI %s: %w", d.Name(), err)
		}
		return nil
	})
}

// inOrder fetches the chunks of a span, some at a time, and hands them on in order.
func inOrder(sp span, fetch func(off uint64, n int) ([]byte, error), emit func(off uint64, chunk []byte) error) error {
	type result struct {
		off   uint64
		chunk []byte
		err   error
	}
	coming := make(chan chan result, chunksInFlight)
	stop := make(chan struct{})
	go func() {
		defer close(coming)
		for done := uint64(0); done < sp.length; {
			off, n := sp.offset+done, min(sp.length-done, chunkBytes-(sp.offset+done)%chunkBytes)
			done += n
			one := make(chan result, 1)
			select {
			case coming <- one:
			case <-stop:
				return
			}
			go func() {
				chunk, err := fetch(off, int(n))
				one <- result{off, chunk, err}
			}()
		}
	}()
	defer close(stop)
	for one := range coming {
		r := <-one
		if r.err != nil {
			return r.err
		}
		if err := emit(r.off, r.chunk); err != nil {
			return err
		}
	}
	return nil
}

func (s *shell) vdiWrite(c *cli.Context) error {
	sp, whole, err := spanArguments(c)
	if err != nil {
		return err
	}
	return s.withDisk(c, "", false, func(ctx context.Context, d *client.Disk) error {
		size := d.Size()
		if sp.offset > size || sp.length > size-sp.offset {
			return fmt.Errorf("Failed to write VDI %s: offset %d and length %d are past its end at %d", d.Name(), sp.offset, sp.length, size)
		}
		if whole {
			sp.length = size - sp.offset
		}
		bar := s.dataProgress("writing", nil)
		defer bar.end()
		stream := vdi.NewStream(ctx, d)
		written, err := pour(ctx, s.in, sp, stream, func(done uint64) { bar.set(int64(done), int64(sp.length)) })
		if flushed := stream.Flush(); err == nil {
			err = flushed
		}
		switch {
		case err != nil:
		case !whole && written < sp.length:
			err = fmt.Errorf("stdin ended after %d of %d bytes", written, sp.length)
		case whole && written == sp.length && !atEnd(s.in):
			err = fmt.Errorf("stdin has more than fits: the VDI ends after %d bytes", size)
		}
		if err != nil {
			return fmt.Errorf("Failed to write VDI %s: %w", d.Name(), err)
		}
		return nil
	})
}

// pour writes what in holds to a span, some chunks at a time, and returns how many bytes that were when in or the span ended.
func pour(ctx context.Context, in io.Reader, sp span, to io.WriterAt, report func(done uint64)) (uint64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	tokens := make(chan struct{}, chunksInFlight)
	done := uint64(0)
	for done < sp.length && ctx.Err() == nil {
		off, n := sp.offset+done, min(sp.length-done, chunkBytes-(sp.offset+done)%chunkBytes)
		buf := make([]byte, n)
		got, err := io.ReadFull(in, buf)
		if got > 0 {
			tokens <- struct{}{}
			go func() {
				defer func() { <-tokens }()
				if _, err := to.WriteAt(buf[:got], int64(off)); err != nil {
					cancel(err)
				}
			}()
			done += uint64(got)
			report(done)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			cancel(fmt.Errorf("read stdin: %w", err))
		}
	}
	for range chunksInFlight { // all that were under way are done
		tokens <- struct{}{}
	}
	return done, context.Cause(ctx)
}

// atEnd says whether in has nothing more to give.
func atEnd(in io.Reader) bool {
	_, err := bufio.NewReaderSize(in, 16).Peek(1)
	return err != nil
}

// dataProgress draws a bar, unless the data itself goes to the terminal; without a terminal it says nothing: stderr is for errors then.
func (s *shell) dataProgress(what string, data io.Writer) *progress {
	if !terminal(s.err) || terminal(data) {
		return &progress{silent: true}
	}
	return s.newProgress(what, true)
}
