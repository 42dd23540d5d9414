# In a guest: a cluster of one node, a disk of it as /dev/nbd0, a file system on that; sheep-nbd is restarted and killed beneath it.
set -e
ip link set lo up
modprobe nbd nbds_max=2
waitdev /dev/vda; mkfs.ext4 -q -F /dev/vda; mkdir -p /cluster; mount /dev/vda /cluster
/sheep dev --nodes 1 --dir /cluster/dev >/dev.log 2>&1 &
for i in $(seq 300); do grep -q "Ctrl-C stops it" /dev.log && break; usleep 200000; done
grep -q "Ctrl-C stops it" /dev.log || { cat /dev.log; exit 1; }
/sheep vdi create disk 64M
/sheep-nbd -c /dev/nbd0 --fork --pid-file /pid disk
echo "size $(blockdev --getsize64 /dev/nbd0) backend $(cat /sys/block/nbd0/backend)"
mkfs.ext4 -q -F /dev/nbd0; mount /dev/nbd0 /mnt
dd if=/dev/urandom of=/mnt/a bs=1M count=8 conv=fsync 2>/dev/null
/sheep vdi lock list

echo "--- restarted on purpose"
kill $(cat /pid); for i in $(seq 100); do [ -e /pid ] || break; usleep 100000; done
dd if=/dev/urandom of=/mnt/b bs=1M count=4 conv=fsync 2>/dev/null & writer=$!
usleep 500000
/sheep-nbd -c /dev/nbd0 --fork --pid-file /pid disk
wait $writer; echo "writer $?"

echo "--- killed"
kill -9 $(cat /pid)
dd if=/dev/urandom of=/mnt/c bs=1M count=4 conv=fsync 2>/dev/null & writer=$!
usleep 500000
/sheep-nbd -c /dev/nbd0 --fork --pid-file /pid disk
wait $writer; echo "writer $?"

(cd /mnt && sha256sum a b c >SUMS); sync
/sheep-nbd -c /dev/nbd0 demo && exit 1 || echo "another VDI: refused, $?"
umount /mnt; e2fsck -fn /dev/nbd0 | tail -1
echo 3 >/proc/sys/vm/drop_caches; mount -o ro /dev/nbd0 /mnt; (cd /mnt && sha256sum -c SUMS); umount /mnt
/sheep-nbd -d /dev/nbd0
for i in $(seq 100); do [ -e /pid ] || break; usleep 100000; done
[ -e /pid ] && { echo "sheep-nbd did not end"; exit 1; }
[ "$(blockdev --getsize64 /dev/nbd0)" = 0 ]
/sheep-nbd -d /dev/nbd1 && exit 1 || echo "not attached: $?"
dmesg | grep -i "i/o error" && exit 1
/sheep cluster check
echo ATTACH-OK
