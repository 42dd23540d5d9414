package client

import (
	"context"
	"log/slog"
	"net"
	"testing"

	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// instant is a primary that has done everything already.
type instant struct{ lsn uint64 }

func (i *instant) Submit(r *wire.Request, b *wire.Batch) {
	i.lsn++
	r.Status, r.Done = wire.StatusOK, wire.Done{Term: r.Term, LSN: i.lsn}
	b.Complete(r)
}

// still is a map that never changes.
type still struct{ m *state.Map }

func (s *still) Map() *state.Map                      { return s.m }
func (s *still) Subscribe() (<-chan struct{}, func()) { return nil, func() {} }

// instantPeer answers frames like instant does.
type instantPeer struct{ lsn uint64 }

var benchBlock = make([]byte, 4096)
var benchSum = (&wire.Moved{Index: uint64(wire.Checksum(benchBlock))}).Append(nil)[:4]

func (p *instantPeer) Closed(*wire.Conn, error) {}
func (p *instantPeer) Frame(c *wire.Conn, f *wire.Frame, b *wire.Batch) {
	h := wire.Header{Kind: f.Kind | wire.KindAnswer, ID: f.ID}
	var meta, data []byte
	switch f.Kind {
	case wire.KindRead:
		meta, data = benchSum, benchBlock
	case wire.KindWrite:
		p.lsn++
		meta = (&wire.Done{Term: f.Term, LSN: p.lsn}).Append(make([]byte, 0, 24))
	}
	c.Send(&h, meta, data, nil)
	b.Flush(c)
}

// benchDisk is a disk whose primaries are all at node 0.
func benchDisk(b *testing.B, remote bool) (*Client, *Disk) {
	f := newFake(b, 1)
	f.vdi("alpha", 1<<30)
	cfg := Config{Maps: &still{}, Net: wire.TCP{}, Local: &instant{}, LocalNode: 0, Logger: slog.New(slog.DiscardHandler)}
	if remote {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		f.m.Nodes[0].Addr = l.Addr().String()
		mux := wire.NewMux(l)
		frames := mux.Listen(wire.PrefaceFrames)
		go mux.Serve()
		go func() {
			for {
				nc, err := frames.Accept()
				if err != nil {
					return
				}
				wire.NewConn(nc, &instantPeer{}).Start()
			}
		}()
		b.Cleanup(func() { mux.Close() })
		cfg.Local = nil
	}
	cfg.Maps = &still{f.m}
	cfg.Propose = func(ctx context.Context, cmd *state.Command) (state.Result, error) {
		r := f.apply(cmd)
		cfg.Maps.(*still).m = f.m
		return r, nil
	}
	c, err := New(cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(c.Close)
	return c, open(b, c, "alpha")
}

func benchmark(b *testing.B, remote bool, kind wire.Kind) {
	_, d := benchDisk(b, remote)
	const depth = 32
	var batch wire.Batch
	ops := make(chan *Op, depth)
	for range depth {
		ops <- &Op{Kind: kind, Len: 4096, Data: make([]byte, 4096), Owner: forever{}, Done: func(op *Op, _ *wire.Batch) {
			if op.Err != nil {
				b.Error(op.Err)
			}
			ops <- op
		}}
	}
	b.ReportAllocs()
	b.SetBytes(4096)
	at := uint64(0)
	for i := 0; b.Loop(); i++ {
		if i%depth == 0 {
			batch.End()
		}
		op := <-ops
		at = (at + 4096*97) % (1 << 30)
		op.Off = at
		d.Submit(op, &batch)
	}
	batch.End()
	for range depth {
		<-ops
	}
}

func BenchmarkLocalRead4K(b *testing.B)   { benchmark(b, false, wire.KindRead) }
func BenchmarkLocalWrite4K(b *testing.B)  { benchmark(b, false, wire.KindWrite) }
func BenchmarkRemoteRead4K(b *testing.B)  { benchmark(b, true, wire.KindRead) }
func BenchmarkRemoteWrite4K(b *testing.B) { benchmark(b, true, wire.KindWrite) }
