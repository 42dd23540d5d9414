// Memserve serves disks in memory with package nbd alone: what strangers and benchmarks say of it is about the protocol's engine, with
// no cluster behind it.
//
//	memserve -unix PATH -tcp HOST:PORT NAME=BYTES...
package main

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/sheepdog-go/sheepdog/nbd"
)

func main() {
	unix := flag.String("unix", "", "unix socket to listen on")
	tcp := flag.String("tcp", "", "address to listen on")
	flag.Parse()
	if err := serve(*unix, *tcp, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "memserve:", err)
		os.Exit(1)
	}
}

func serve(unix, tcp string, disks []string) error {
	if unix == "" && tcp == "" || len(disks) == 0 {
		return errors.New("usage: memserve -unix PATH -tcp HOST:PORT NAME=BYTES...")
	}
	backend := nbd.NewMemBackend()
	for _, d := range disks {
		name, size, _ := strings.Cut(d, "=")
		n, err := strconv.ParseUint(size, 10, 63)
		if err != nil {
			return fmt.Errorf("disk %q: %w", d, err)
		}
		backend.Add(nbd.ExportInfo{Name: name, Description: "a disk in memory", Size: n, MultiConn: true})
	}
	server, err := nbd.NewServer(nbd.Config{Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))}, backend)
	if err != nil {
		return err
	}
	ended := make(chan error, 2)
	if unix != "" {
		l, err := nbd.ListenUnix(nbd.UnixSocket{Path: unix})
		if err != nil {
			return err
		}
		go func() { ended <- server.Serve(l) }()
	}
	if tcp != "" {
		l, err := net.Listen("tcp", tcp)
		if err != nil {
			return err
		}
		go func() { ended <- server.Serve(l) }()
	}
	return <-ended
}
