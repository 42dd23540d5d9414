package vdi

import (
	"context"
	"math/rand/v2"
	"testing"

	"github.com/sheepdog-go/sheepdog/cluster/client"
	"github.com/sheepdog-go/sheepdog/cluster/state"
	"github.com/sheepdog-go/sheepdog/cluster/wire"
)

// benchmark keeps 32 requests under way on a disk of three true nodes, whose third is the client's own.
func benchmark(b *testing.B, kind wire.Kind, nodes int) {
	c := startCluster(b, nodes)
	c.propose(&state.Command{CreateVDI: &state.CreateVDI{Name: "alpha", Size: 256 << 20}})
	cl := c.gateway(0)
	defer cl.Close()
	d, err := cl.Open(context.Background(), "alpha", "", client.OpenOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close(context.Background())
	s := NewStream(context.Background(), d)
	fill := make([]byte, 1<<20)
	for at := int64(0); at < 256<<20; at += 1 << 20 {
		if _, err := s.WriteAt(fill, at); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Flush(); err != nil {
		b.Fatal(err)
	}
	const depth = 32
	var batch wire.Batch
	ops := make(chan *client.Op, depth)
	for range depth {
		buf := wire.GetBuf(4096)
		ops <- &client.Op{Kind: kind, Len: 4096, Data: buf.B, Owner: buf, Done: func(op *client.Op, _ *wire.Batch) {
			if op.Err != nil {
				b.Error(op.Err)
			}
			ops <- op
		}}
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	b.ReportAllocs()
	b.SetBytes(4096)
	for b.Loop() {
		var op *client.Op
		select {
		case op = <-ops:
		default:
			batch.End()
			op = <-ops
		}
		op.Off = uint64(rnd.IntN(256<<20/4096)) * 4096
		d.Submit(op, &batch)
	}
	batch.End()
	for range depth {
		<-ops
	}
}

func BenchmarkRandomRead4K(b *testing.B)     { benchmark(b, wire.KindRead, 3) }
func BenchmarkRandomWrite4K(b *testing.B)    { benchmark(b, wire.KindWrite, 3) }
func BenchmarkRandomWrite4KOne(b *testing.B) { benchmark(b, wire.KindWrite, 1) }
