package nbd

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The clients that people really use.

func TestStrangersNbdinfo(t *testing.T) {
	r, _ := memRig(t)
	out := tool(t, "nbdinfo", r.uri("disk"))
	for _, want := range []string{
		"protocol: newstyle-fixed without TLS", "export-size: 8388608", "is_read_only: false", "can_flush: true", "can_fua: true",
		"can_trim: true", "can_zero: true", "can_fast_zero: true", "can_cache: true", "can_multi_conn: true", "can_df: true",
		"base:allocation", "block_size_maximum: 67108864", "description: a disk",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("nbdinfo does not say %q:\n%s", want, out)
		}
	}
	list := tool(t, "nbdinfo", "--list", r.uri(""))
	for _, want := range []string{`export="":`, `export="disk":`, `export="ro":`, "is_read_only: true", "the default disk"} {
		if !strings.Contains(list, want) {
			t.Errorf("nbdinfo --list does not say %q:\n%s", want, list)
		}
	}
	tool(t, "nbdinfo", "--json", r.uri("disk"))
	tool(t, "qemu-nbd", "--list", "-k", r.sock)
	if out := tool(t, "nbdinfo", "--map", r.uri("disk")); !strings.Contains(out, "hole,zero") {
		t.Errorf("nbdinfo --map: %s", out)
	}
}

func TestStrangersNbdcopy(t *testing.T) {
	r, _ := memRig(t)
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	content := pattern(testSize, 7)
	clear(content[1<<20 : 3<<20])
	if err := os.WriteFile(a, content, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, conns := range []string{"1", "4", "16"} {
		tool(t, "nbdcopy", "--connections="+conns, a, r.uri("disk"))
		tool(t, "nbdcopy", "--connections="+conns, r.uri("disk"), b)
		got, err := os.ReadFile(b)
		if err != nil || string(got) != string(content) {
			t.Fatalf("what came back over %s connections differs (%v)", conns, err)
		}
	}
	if out := tool(t, "nbdinfo", "--map", r.uri("disk")); !strings.Contains(out, "hole,zero") {
		t.Errorf("the hole got lost:\n%s", out)
	}
}

func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	x := uint32(seed) + 1
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

func TestStrangersQemu(t *testing.T) {
	r, _ := memRig(t)
	uri := r.uri("disk")
	out := tool(t, "qemu-io", "-f", "raw", uri, "-c", "write -P 0xaa 0 1M", "-c", "write -P 0x55 4k 5k", "-c", "write -z 64k 64k",
		"-c", "write -z -u 256k 128k", "-c", "discard 512k 64k", "-c", "flush", "-c", "read -P 0xaa 0 4k", "-c", "read -P 0x55 4k 5k",
		"-c", "read -P 0 64k 64k", "-c", "read -P 0 256k 128k", "-c", "read -P 0 512k 64k", "-c", "write -f -P 1 7M 1M", "-c", "read -P 1 7M 1M")
	if strings.Contains(out, "erification") || strings.Contains(out, "failed") {
		t.Errorf("qemu-io: %s", out)
	}
	img := filepath.Join(t.TempDir(), "img")
	tool(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", uri, img)
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", img, uri)
	tool(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", img, r.uri(""))
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", img, r.uri(""))
	tool(t, "qemu-img", "map", "--output=json", "-f", "raw", uri)
	tool(t, "qemu-img", "bench", "-f", "raw", "-w", "-c", "2000", "-d", "16", uri)
}

func TestStrangersFio(t *testing.T) {
	r, _ := memRig(t)
	for _, rw := range []string{"randwrite", "write", "randrw"} {
		tool(t, "fio", "--name=v", "--ioengine=nbd", "--uri="+r.uri("disk"), "--rw="+rw, "--bsrange=512-128k", "--size=8m", "--iodepth=32",
			"--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--fsync=16", "--output="+filepath.Join(t.TempDir(), "out"))
	}
}

func TestStrangersNbdsh(t *testing.T) {
	r, _ := memRig(t)
	tool(t, "nbdsh", "-u", r.uri("disk"), "-c", `
h.pwrite(b"x" * 8192, 1000)
assert h.pread(8192, 1000) == b"x" * 8192
h.zero(4096, 2000, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
assert h.pread(100, 2000) == b"\0" * 100
h.zero(65536, 65536, nbd.CMD_FLAG_FAST_ZERO)
h.trim(65536, 0)
h.cache(4096, 0)
h.flush()
h.set_strict_mode(0)
for call, want in [
    (lambda: h.pread(4096, 8 << 20), "EINVAL"),
    (lambda: h.pwrite(b"x" * 4096, 8 << 20), "ENOSPC"),
    (lambda: h.zero(4096, 8 << 20), "ENOSPC"),
    (lambda: h.trim(4096, 8 << 20), "EINVAL"),
    (lambda: h.pread(4096, (1 << 64) - 512), "EINVAL"),
    (lambda: h.pread(4096, 0, 0x100), "EINVAL"),
]:
    try:
        call()
        raise AssertionError("no error")
    except nbd.Error as ex:
        assert ex.errno == want, (ex.errno, want)
h.shutdown()
`)
}

func TestStrangersTCPAndProxy(t *testing.T) {
	r, _ := memRig(t)
	dir := t.TempDir()
	from, to := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	if err := os.WriteFile(from, pattern(testSize, 5), 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "nbdcopy", from, "nbd://"+r.tcp+"/disk")
	tool(t, "nbdkit", "-U", "-", "nbd", "uri="+r.uri("disk"), "--run", "nbdcopy $uri "+to) // nbdkit's client between us and them
	if got, err := os.ReadFile(to); err != nil || string(got) != string(pattern(testSize, 5)) {
		t.Errorf("what came back differs (%v)", err)
	}
}
