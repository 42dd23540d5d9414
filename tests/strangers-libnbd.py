"""Every call of libnbd against one export (its URI is the argument), also those that a server must refuse and survive."""
import errno, os, random, sys
import nbd

uri = sys.argv[1]
MIB = 1 << 20


def connect(**how):
    h = nbd.NBD()
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    if not how.get('structured', True):
        h.set_request_structured_replies(False)
    h.connect_uri(uri)
    return h


def refused(what, call, *codes):
    try:
        call()
    except nbd.Error as e:
        assert e.errnum in codes, f'{what}: errno {errno.errorcode.get(e.errnum, e.errnum)}: {e}'
        return
    raise AssertionError(f'{what}: was not refused')


def transmission(h):
    size = h.get_size()
    data = random.Random(1).randbytes(3 * MIB)
    h.pwrite(data, MIB)
    assert h.pread(3 * MIB, MIB) == data
    h.pwrite(data[:4096], 5 * MIB + 512, nbd.CMD_FLAG_FUA)
    assert h.pread(4096, 5 * MIB + 512) == data[:4096]
    h.zero(MIB, 7 * MIB)
    h.pwrite(b'x', 7 * MIB + 1)  # one byte, at an odd place
    assert h.pread(3, 7 * MIB) == b'\0x\0'
    h.flush()
    h.zero(MIB, MIB)
    assert h.pread(MIB, MIB) == bytes(MIB)
    h.zero(4096 + 100, 2 * MIB + 50, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
    got = h.pread(2 * MIB, 2 * MIB)
    assert got[:50] == data[MIB:MIB + 50] and got[50:4246] == bytes(4196) and got[4246:] == data[MIB + 4246:]
    h.trim(MIB, 3 * MIB, nbd.CMD_FLAG_FUA)
    h.zero(MIB, 3 * MIB)
    assert h.pread(MIB, 3 * MIB) == bytes(MIB)
    if h.can_cache():
        h.cache(MIB, 0)
    assert h.pread(512, size - 512) is not None
    for n in (1, 511, 513, 4097, 65536, 32 * MIB):
        if n <= size:
            assert len(h.pread(n, size - n)) == n
    h.pwrite(bytes(range(256)) * 16, size - 4096)
    assert h.pread(4096, size - 4096) == bytes(range(256)) * 16


def structured(h):
    chunks = []
    h.zero(4 * MIB, 0)
    h.pwrite(b'\1' * 65536, MIB)

    def chunk(buf, offset, kind, err):
        chunks.append((offset, len(buf), kind))
    h.pread_structured(4 * MIB, 0, chunk)
    assert sum(n for _, n, _ in chunks) == 4 * MIB, chunks
    if h.can_df():
        chunks.clear()
        h.pread_structured(65536, MIB, chunk, nbd.CMD_FLAG_DF)
        assert len(chunks) == 1, chunks
    extents = []

    def extent(context, offset, entries, err):
        assert context == 'base:allocation'
        extents.extend(zip(entries[::2], entries[1::2]))
    h.block_status(4 * MIB, 0, extent)
    assert extents and sum(n for n, _ in extents) >= 1
    first, flags = extents[0]
    assert flags & nbd.STATE_ZERO and first <= MIB, extents
    extents.clear()
    h.block_status(4 * MIB, 0, extent, nbd.CMD_FLAG_REQ_ONE)
    assert len(extents) == 1 and extents[0][0] <= 4 * MIB, extents


def illegal(h):
    size = h.get_size()
    h.set_strict_mode(0)
    out = (errno.EINVAL, errno.ENOSPC)
    refused('read past the end', lambda: h.pread(512, size), *out)
    refused('read over the end', lambda: h.pread(1024, size - 512), *out)
    refused('write past the end', lambda: h.pwrite(b'y' * 512, size), *out)
    refused('write over the end', lambda: h.pwrite(b'y' * 1024, size - 512), *out)
    refused('zero over the end', lambda: h.zero(1024, size - 512), *out)
    refused('trim over the end', lambda: h.trim(1024, size - 512), *out)
    refused('block status over the end', lambda: h.block_status(1024, size, lambda *a: 0), *out)
    refused('read far past 2^63', lambda: h.pread(512, (1 << 63) - 512), *out)
    refused('unknown command flag', lambda: h.flush(1 << 10), errno.EINVAL)
    assert len(h.pread(4096, 0)) == 4096  # and the connection goes on


def many_in_flight(h):
    bufs = [random.Random(i).randbytes(16384) for i in range(128)]
    for i, b in enumerate(bufs):
        h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b)), i * 16384, lambda e: 1)
    while h.aio_in_flight():
        h.poll(-1)
    h.flush()
    for i, b in enumerate(bufs):
        assert h.pread(16384, i * 16384) == b, i


for mode in (True, False):
    h = connect(structured=mode)
    assert h.get_structured_replies_negotiated() == mode
    transmission(h)
    if mode:
        structured(h)
    illegal(h)
    many_in_flight(h)
    h.shutdown()

# Several connections: what one has been told is written (and flushed), the others see.
conns = [connect() for _ in range(8)]
assert all(h.can_multi_conn() for h in conns)
for i, h in enumerate(conns):
    h.pwrite(bytes([i + 1]) * 4096, i * 4096)
    h.flush()
    for j, other in enumerate(conns):
        assert other.pread(4096, i * 4096) == bytes([i + 1]) * 4096, (i, j)
for h in conns:
    h.shutdown()

# Options: abort, info before go, listing in option mode.
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(uri)
assert h.aio_is_negotiating()
names = []
h.opt_list(lambda name, desc: names.append(name) and 0 or 0)
assert names, 'no export listed'
h.opt_info()
size = h.get_size()
contexts = []
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.opt_list_meta_context(lambda c: contexts.append(c) and 0 or 0)
assert 'base:allocation' in contexts, contexts
h.opt_go()
assert h.get_size() == size, 'INFO and GO disagree'
h.shutdown()
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(uri)
h.opt_abort()
print('LIBNBD-OK')
