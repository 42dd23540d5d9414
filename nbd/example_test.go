package nbd_test

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"os"

	"github.com/sheepdog-go/sheepdog/nbd"
)

// fileBackend exports one file under every name.
type fileBackend struct{ path string }

func (b fileBackend) List(context.Context) ([]nbd.ExportInfo, error) {
	return []nbd.ExportInfo{{Name: "file", Description: b.path}}, nil
}

func (b fileBackend) Info(_ context.Context, name string) (nbd.ExportInfo, error) {
	if name != "file" {
		return nbd.ExportInfo{}, fs.ErrNotExist
	}
	st, err := os.Stat(b.path)
	if err != nil {
		return nbd.ExportInfo{}, err
	}
	return nbd.ExportInfo{Name: name, Size: uint64(st.Size()), MultiConn: true}, nil
}

func (b fileBackend) Open(ctx context.Context, name string) (nbd.Device, nbd.ExportInfo, error) {
	info, err := b.Info(ctx, name)
	if err != nil {
		return nil, info, err
	}
	f, err := os.OpenFile(b.path, os.O_RDWR, 0)
	return fileDevice{f}, info, err
}

// fileDevice answers on the spot, which is right for a file in the page cache.
type fileDevice struct{ f *os.File }

func (d fileDevice) Submit(r *nbd.Request) {
	var err error
	switch r.Op {
	case nbd.OpRead:
		_, err = d.f.ReadAt(r.Data, int64(r.Offset))
	case nbd.OpWrite:
		_, err = d.f.WriteAt(r.Data, int64(r.Offset))
		if err == nil && r.FUA {
			err = d.f.Sync()
		}
	case nbd.OpFlush:
		err = d.f.Sync()
	}
	r.Done(err)
}

func (d fileDevice) Push()        {}
func (d fileDevice) Close() error { return d.f.Close() }

func Example() {
	f, err := os.CreateTemp("", "disk")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.Remove(f.Name())
	_ = f.Truncate(1 << 20)

	srv, err := nbd.NewServer(nbd.Config{}, fileBackend{f.Name()})
	if err != nil {
		fmt.Println(err)
		return
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	done := make(chan error)
	go func() { done <- srv.Serve(l) }()
	// nbdinfo nbd://ADDRESS/file
	fmt.Println(srv.Shutdown(context.Background()), <-done)
	// Output: <nil> nbd: server closed
}
