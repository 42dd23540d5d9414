package main

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sheepdog-go/sheepdog/nbd"
)

// TestHandshakeOverAPair: what is given to the kernel is a socket on which transmission begins.
func TestHandshakeOverAPair(t *testing.T) {
	mem := nbd.NewMemBackend()
	mem.Add(nbd.ExportInfo{Name: "disk", Size: 1 << 20, MultiConn: true})
	server, err := nbd.NewServer(nbd.Config{}, mem)
	if err != nil {
		t.Fatal(err)
	}
	l := newPairListener()
	go server.Serve(l)
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		server.Shutdown(ctx)
	}()
	conn, f, err := l.dial()
	if err != nil {
		t.Fatal(err)
	}
	size, flags, err := handshake(conn, "disk")
	if err != nil || size != 1<<20 || flags&1 == 0 {
		t.Fatal(size, flags, err)
	}
	conn.Close()
	again, err := net.FileConn(f) // the kernel's part
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	request := make([]byte, 28) // read 512 bytes at 0
	binary.BigEndian.PutUint32(request, 0x25609513)
	binary.BigEndian.PutUint64(request[8:], 77)
	binary.BigEndian.PutUint32(request[24:], 512)
	again.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := again.Write(request); err != nil {
		t.Fatal(err)
	}
	reply := make([]byte, 16+512)
	if _, err := io.ReadFull(again, reply); err != nil || binary.BigEndian.Uint32(reply) != 0x67446698 || binary.BigEndian.Uint64(reply[8:]) != 77 {
		t.Fatalf("%x, %v", reply[:16], err)
	}
	conn, f, err = l.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	defer f.Close()
	if _, _, err := handshake(conn, "nonesuch"); err == nil || !strings.Contains(err.Error(), "nonesuch") {
		t.Error(err)
	}
}

// FuzzHandshake: a server that says anything gets an error or an answer, never a panic or much memory.
func FuzzHandshake(f *testing.F) {
	hello := binary.BigEndian.AppendUint64(nil, nbdMagic)
	hello = binary.BigEndian.AppendUint64(hello, nbdOptMagic)
	hello = binary.BigEndian.AppendUint16(hello, nbdFixedNewstyle)
	info := binary.BigEndian.AppendUint64(hello, nbdReplyMagic)
	info = append(info, 0, 0, 0, nbdOptGo, 0, 0, 0, nbdRepInfo, 0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 1)
	f.Add(hello)
	f.Add(info)
	f.Fuzz(func(t *testing.T, said []byte) {
		ours, theirs := net.Pipe()
		go func() {
			go io.Copy(io.Discard, theirs)
			theirs.Write(said)
			theirs.Close()
		}()
		if size, _, err := handshake(ours, "disk"); err == nil && size == 0 && len(said) < 18 {
			t.Fatal("a handshake out of nothing")
		}
		ours.Close()
	})
}

func TestDeviceIndex(t *testing.T) {
	for _, path := range []string{"", "nbd0", "/dev/nbd", "/dev/nbdx", "/dev/nbd0p1", "/dev/nbd-1", "/dev/nbd99999999999", "/dev/sda", "/dev/nbd01"} {
		if _, err := deviceIndex(path); exitCode(err) != exitUsage {
			t.Errorf("%q: %v", path, err)
		}
	}
	if _, err := deviceIndex("/dev/nbd1234567"); exitCode(err) != exitFailed {
		t.Error("a device that is not there", err)
	}
}

// TestAttachInGuest attaches a disk to the kernel of a virtual machine in which a whole cluster runs: this machine's kernel may have no NBD. It needs
// the guest that scripts/rig makes.
func TestAttachInGuest(t *testing.T) {
	rig := os.Getenv("RIG")
	if rig == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Skip(err)
		}
		rig = filepath.Join(cache, "sheepdog-rig")
	}
	if _, err := os.Stat(filepath.Join(rig, "vmlinuz")); err != nil || testing.Short() {
		t.Skip("no guest: scripts/rig/make-guest makes one")
	}
	bin := t.TempDir()
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", bin+"/", "./cmd/sheep", "./cmd/sheep-nbd")
	build.Dir = "../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	disk := filepath.Join(bin, "disk.img")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 1<<30); err != nil {
		t.Fatal(err)
	}
	run := exec.Command("../../scripts/rig/run-guest", "testdata/guest-attach.sh", "-drive", "file="+disk+",format=raw,if=virtio,cache=unsafe")
	run.Env = append(os.Environ(), "FILES="+bin+"/sheep "+bin+"/sheep-nbd", "MEM=1024", "LIMIT=300")
	out, err := run.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "ATTACH-OK") {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}
