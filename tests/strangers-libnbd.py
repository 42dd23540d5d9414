"""Every call of libnbd against one export (its URI is the first argument), also those that a server must refuse and survive.

A second URI, by TCP, adds the ways to connect that need one; then it is checked that no call of the library was left out.
"""
import errno, random, select, socket, sys, urllib.parse
import nbd

uri = sys.argv[1]
MIB = 1 << 20

called = set()
not_for_servers = {
    # these start a server of their own
    'connect_command', 'aio_connect_command', 'connect_systemd_socket_activation', 'aio_connect_systemd_socket_activation', 'kill_subprocess',
    'connect_vsock', 'aio_connect_vsock',  # not between a host and itself
    'set_tls_psk_file', 'set_tls_username', 'get_tls_username',  # keys without certificates
}


class NBD(nbd.NBD):
    """Notes what was called, and may read certificates that a URI names."""
    def __init__(self):
        super().__init__()
        self.set_uri_allow_local_file(True)

    def __getattribute__(self, name):
        if not name.startswith('_'):
            called.add(name)
        return super().__getattribute__(name)


def connect(**how):
    h = NBD()
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.set_full_info(True)
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
    refused('cache over the end', lambda: h.cache(1024, size - 512), *out)
    for flag in (1 << 5, 1 << 10, 1 << 15):  # PAYLOAD_LEN goes with extended headers only
        refused('unknown command flag', lambda: h.flush(flag), errno.EINVAL)
        refused('unknown command flag', lambda: h.pread(512, 0, flag), errno.EINVAL)
        refused('unknown command flag', lambda: h.pwrite(b'y' * 512, 0, flag), errno.EINVAL)
        refused('unknown command flag', lambda: h.zero(512, 0, flag), errno.EINVAL)
        refused('unknown command flag', lambda: h.trim(512, 0, flag), errno.EINVAL)
        refused('unknown command flag', lambda: h.cache(512, 0, flag), errno.EINVAL)
    refused('NO_HOLE with a read', lambda: h.pread(512, 0, nbd.CMD_FLAG_NO_HOLE), errno.EINVAL)
    refused('FAST_ZERO with a trim', lambda: h.trim(512, 0, nbd.CMD_FLAG_FAST_ZERO), errno.EINVAL)
    refused('REQ_ONE with a write', lambda: h.pwrite(b'y' * 512, 0, nbd.CMD_FLAG_REQ_ONE), errno.EINVAL)
    refused('DF with a flush', lambda: h.flush(nbd.CMD_FLAG_DF), errno.EINVAL)
    if not h.get_structured_replies_negotiated():
        refused('DF without structured replies', lambda: h.pread(512, 0, nbd.CMD_FLAG_DF), errno.EINVAL)
        refused('block status without a context', lambda: h.block_status(512, 0, lambda *a: 0), errno.EINVAL, errno.ENOTSUP)
    else:
        refused('block status of nothing', lambda: h.block_status(0, 0, lambda *a: 0), errno.EINVAL)
    for nothing in (lambda: h.pread(0, 0), lambda: h.pwrite(b'', 0), lambda: h.zero(0, 0), lambda: h.trim(0, 0), lambda: h.cache(0, 0), lambda: h.pwrite(b'', size)):
        nothing()
    h.pread(512, 0, nbd.CMD_FLAG_FUA)  # offered, so it goes with everything
    h.flush(nbd.CMD_FLAG_FUA)
    h.cache(512, 0, nbd.CMD_FLAG_FUA)
    try:  # fast, or refused as such: never slow
        h.zero(MIB, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
    except nbd.Error as e:
        assert e.errnum == errno.ENOTSUP, e
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



def wait(h, busy):
    while busy():
        h.poll(-1)


def asynchronous(h):
    """Each aio_ call, its cookie and its completion."""
    out = nbd.Buffer.from_bytearray(bytearray(b'a' * 4096))
    back = nbd.Buffer(4096)

    def done(cookie):
        wait(h, lambda: not h.aio_command_completed(cookie))
    done(h.aio_pwrite(out, 0))
    done(h.aio_flush())
    done(h.aio_pread(back, 0))
    assert back.to_bytearray() == b'a' * 4096
    chunks = []
    done(h.aio_pread_structured(back, 0, lambda *a: chunks.append(a[1]) and 0 or 0))
    assert chunks
    done(h.aio_zero(4096, 4096))
    done(h.aio_trim(4096, 8192))
    done(h.aio_cache(4096, 0))
    seen = []
    done(h.aio_block_status(4096, 0, lambda *a: seen.append(a[0]) and 0 or 0))
    assert seen == ['base:allocation']
    cookie = h.aio_flush()
    while h.aio_peek_command_completed() != cookie:
        assert h.aio_get_direction() in (nbd.AIO_DIRECTION_READ, nbd.AIO_DIRECTION_WRITE, nbd.AIO_DIRECTION_BOTH)
        h.poll(-1)
    assert h.aio_command_completed(cookie)
    assert h.aio_get_fd() > 2 and h.aio_is_ready() and not h.aio_is_created() and not h.aio_is_connecting() and not h.aio_is_processing()
    cookies = [h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(4 * MIB)), 4 * i * MIB) for i in range(8)]  # by hand, as an event loop does it
    while cookies:
        p, d = select.poll(), h.aio_get_direction()
        p.register(h.aio_get_fd(), (select.POLLIN if d & nbd.AIO_DIRECTION_READ else 0) | (select.POLLOUT if d & nbd.AIO_DIRECTION_WRITE else 0))
        for _, ready in p.poll(10000):
            if ready & select.POLLIN:
                h.aio_notify_read()
            elif ready & select.POLLOUT:
                h.aio_notify_write()
        cookies = [c for c in cookies if not h.aio_command_completed(c)]
    h.aio_disconnect()
    wait(h, lambda: not h.aio_is_closed() and not h.aio_is_dead())
    assert not h.aio_is_dead(), 'the server broke the connection instead of closing it'


def about(h):
    """What a connection tells, and the settings of a handle."""
    assert h.can_flush() and h.can_fua() and h.can_trim() and h.can_zero() and h.can_cache() and h.can_fast_zero() and h.can_df()
    assert not h.is_read_only() and not h.is_rotational()
    assert h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION) and not h.can_meta_context('x-nobody:knows')
    assert h.get_block_size(nbd.SIZE_MINIMUM) == 1 and h.get_block_size(nbd.SIZE_PREFERRED) >= 4096 and h.get_block_size(nbd.SIZE_MAXIMUM) >= 32 * MIB
    assert h.get_protocol() == 'newstyle-fixed' and h.get_export_description() and h.get_canonical_export_name()
    assert h.get_tls_negotiated() == uri.startswith('nbds')
    for name in ('connection_state', 'get_package_name', 'get_version', 'get_handle_name', 'get_export_name', 'get_debug', 'get_full_info',
                 'get_handshake_flags', 'get_opt_mode', 'get_pread_initialize', 'get_private_data', 'get_request_block_size', 'get_request_structured_replies',
                 'get_strict_mode', 'get_tls', 'get_tls_verify_peer', 'supports_tls', 'supports_uri'):
        getattr(h, name)()
    assert h.get_nr_meta_contexts() == 1 and h.get_meta_context(0) == nbd.CONTEXT_BASE_ALLOCATION
    h.set_handle_name('strangers')
    h.set_private_data(7)
    h.set_pread_initialize(False)
    h.set_debug_callback(lambda *a: 0)
    h.set_debug(True)
    h.flush()
    h.set_debug(False)
    h.clear_debug_callback()


def settings(flags, blocks):
    """A handshake in other ways: without NO_ZEROES or fixed newstyle, without block sizes."""
    h = NBD()
    h.set_uri_allow_transports(nbd.ALLOW_TRANSPORT_TCP | nbd.ALLOW_TRANSPORT_UNIX)
    h.set_uri_allow_tls(nbd.TLS_ALLOW)
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.clear_meta_contexts()
    if uri.startswith('nbds'):
        q = dict(urllib.parse.parse_qsl(urllib.parse.urlparse(uri).query))
        h.set_tls(nbd.TLS_REQUIRE)
        h.set_tls_certificates(q['tls-certificates'])
        h.set_tls_verify_peer(True)
    else:
        h.set_tls(nbd.TLS_DISABLE)
        h.set_tls_certificates('/nonesuch')
        h.set_tls_verify_peer(True)
    h.set_handshake_flags(flags)
    h.set_request_block_size(blocks)
    h.set_full_info(True)
    h.connect_uri(uri)
    assert h.pread(512, 0) is not None and h.get_uri()
    h.shutdown()


def by_address(where):
    """Each way to connect that this URI allows."""
    u = urllib.parse.urlparse(where)
    export = u.path.lstrip('/')
    path = dict(urllib.parse.parse_qsl(u.query)).get('socket')

    def stream():
        if path:
            s = socket.socket(socket.AF_UNIX)
            s.connect(path)
        else:
            s = socket.create_connection((u.hostname, u.port or 10809))
        return s.detach()
    ways = [lambda h: h.connect_socket(stream()), lambda h: h.aio_connect_socket(stream()), lambda h: h.aio_connect_uri(where)]
    if path:
        ways += [lambda h: h.connect_unix(path), lambda h: h.aio_connect_unix(path), lambda h: h.aio_connect(path)]
    else:
        ways += [lambda h: h.connect_tcp(u.hostname, str(u.port or 10809)), lambda h: h.aio_connect_tcp(u.hostname, str(u.port or 10809))]
    for way in ways:
        h = NBD()
        h.set_export_name(export)
        way(h)
        wait(h, h.aio_is_connecting)
        assert h.aio_is_ready() and len(h.pread(4096, 0)) == 4096
        h.shutdown()


about(h := connect())
asynchronous(connect())
h.shutdown()
NO_ZEROES, FIXED = nbd.HANDSHAKE_FLAG_NO_ZEROES, nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE
for flags in (NO_ZEROES | FIXED, FIXED) if uri.startswith('nbds') else (NO_ZEROES | FIXED, FIXED, NO_ZEROES, 0):
    settings(flags, flags & NO_ZEROES != 0)


# Options: abort, info before go, listing in option mode.
h = NBD()
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
h = NBD()
h.set_opt_mode(True)
h.connect_uri(uri)
h.opt_abort()

# The same without waiting; an export that is not there is refused, and the negotiation goes on.
h = NBD()
h.set_opt_mode(True)
h.set_full_info(True)
h.connect_uri(uri)
name = h.get_export_name()
h.set_export_name('nonesuch')
refused('an unknown export', h.opt_info, errno.ENOENT, errno.EPERM, errno.ENOTSUP)
refused('an unknown export', h.opt_go, errno.ENOENT, errno.EPERM, errno.ENOTSUP)
h.set_export_name('n' * 4096)
refused('a name of 4096 bytes', h.opt_info, errno.ENOENT, errno.EPERM, errno.ENOTSUP)
h.set_export_name(name)
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
for call in (lambda: h.aio_opt_list(lambda *a: 0), h.aio_opt_info, lambda: h.aio_opt_list_meta_context(lambda *a: 0), h.aio_opt_go):
    call()
    wait(h, h.aio_is_connecting)
assert h.aio_is_ready() and h.get_size() == size
h.shutdown()
h = NBD()
h.set_opt_mode(True)
h.connect_uri(uri)
h.aio_opt_abort()
wait(h, lambda: not h.aio_is_closed() and not h.aio_is_dead())

if len(sys.argv) > 2:
    by_address(uri)
    by_address(sys.argv[2])
    left = {n for n in dir(nbd.NBD) if not n.startswith('_')} - called - not_for_servers
    assert not left, f'not called: {sorted(left)}'
print('LIBNBD-OK')
