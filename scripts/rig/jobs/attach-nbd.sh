# sheep-nbd -c in a guest: $NODES (nodes of the host's cluster), $NAME (VDI), $CONNS. Prints MARK lines, at which the host does its part.
# Shown: no I/O error while a node is killed, while sheep-nbd is restarted, and while it is killed and started again.
ip link set lo up; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2
fail() { echo "JOB-FAILED: $*"; tail -20 /tmp/nbd.log; dmesg | tail -20; exit 1; }
until_true() { n=$1; shift; while ! "$@" >/dev/null 2>&1; do n=$((n-1)); [ $n -gt 0 ] || return 1; usleep 100000; done; }

/sheep-nbd -l >/tmp/out 2>&1 && fail "no module, yet -l succeeds"
grep -q 'modprobe nbd' /tmp/out || fail "no clear words without the module"
modprobe nbd nbds_max=4

serve() { /sheep-nbd -a $NODES -c ${1:-/dev/nbd0} -C $CONNS $2 --io-timeout 4s --log-level info $NAME >>/tmp/nbd.log 2>&1 & pid=$!; }
listed() { /sheep-nbd -l | grep "^/dev/nbd$1 .* $2 *sheepdog:.*/$NAME/[0-9]*\$"; }
served() { listed 0 served; }
serve; until_true 300 served || fail "not attached"
/sheep-nbd -l
echo "wc=$(cat /sys/block/nbd0/queue/write_cache) fua=$(cat /sys/block/nbd0/queue/fua) discard=$(cat /sys/block/nbd0/queue/discard_max_bytes) ro=$(cat /sys/block/nbd0/ro)"
[ "$(cat /sys/block/nbd0/queue/write_cache)" = "write back" ] || fail "no write cache: flushes would not be sent"
[ "$(/sheep-nbd -l | awk "NR==2{print \$5}")" = $CONNS ] || fail "not $CONNS connections"
/sheep-nbd -a $NODES -c /dev/nbd0 $NAME && fail "two serve one device"

mkfs.ext4 -q -F /dev/nbd0 || fail mkfs
mount -o discard /dev/nbd0 /mnt || fail mount
/sheep-nbd -d /dev/nbd0 && fail "detached although mounted"
passes() { cat /tmp/passes 2>/dev/null || echo 0; }
(n=0; while [ ! -e /tmp/stop ]; do
  fio --name=v --directory=/mnt --rw=randwrite --bs=4k-64k --size=4M --direct=1 --ioengine=io_uring --iodepth=8 --fsync=32 --verify=crc32c --verify_fatal=1 \
    --randseed=$n --minimal >/tmp/fio.out 2>&1 || { echo "fio pass $n"; cat /tmp/fio.out; echo failed >/tmp/passes; exit 1; }
  n=$((n+1)); echo $n >/tmp/passes
done) & fio=$!
more() { [ "$(passes)" = failed ] && return 0; [ "$(passes)" -ge $((base+$1)) ]; }
go_on() { base=$(passes); until_true ${2:-900} more $1; [ "$(passes)" = failed ] && fail "fio met an error: $3"; more $1 || fail "no progress: $3"; echo "passes $(passes) uptime $(cut -d' ' -f1 /proc/uptime): $3"; }
go_on 1 900 "at rest"
echo "MARK kill-node"
go_on 2 900 "a node was killed"

for round in 1 2; do
  kill -TERM $pid; wait $pid || fail "sheep-nbd did not stop well"
  listed 0 "waits for sheep-nbd" || fail "not waiting"
  serve /dev/nbd0 "--block-size $((round * 2048))"; until_true 300 served || fail "not served again"
  [ "$(cat /sys/block/nbd0/queue/logical_block_size)" = 512 ] || fail "a device in use got another sector"
  go_on 1 900 "sheep-nbd was restarted ($round)"
done
kill -9 $pid; wait $pid; usleep 500000
serve /dev/nbd; until_true 600 served || fail "not served again"
go_on 2 900 "sheep-nbd was killed"
echo "MARK resize"
bigger() { [ "$(cat /sys/block/nbd0/size)" = 1048576 ]; }
until_true 300 bigger || fail "the new size is not seen"
go_on 1 900 "the disk has grown"

touch /tmp/stop; wait $fio || fail fio
umount /mnt || fail umount
e2fsck -fn /dev/nbd0 || fail e2fsck
dmesg | grep -iE 'I/O error|EXT4-fs error|Other side returned error' && fail "the kernel saw errors"
kill -TERM $pid; wait $pid || fail "sheep-nbd did not end well"
until_true 50 [ ! -e /sys/block/nbd0/pid ] || fail "an unused device stayed attached"
serve; until_true 300 served || fail "not attached a second time"
/sheep-nbd -d /dev/nbd0 || fail detach
wait $pid || fail "sheep-nbd did not end well after -d"
[ "$(/sheep-nbd -l | wc -l)" = 1 ] || fail "-l lists something"
gone_or_served() { served || ! kill -0 $pid; }
anew() { for i in $(seq 60); do serve; until_true 100 gone_or_served; served && return 0; usleep 500000; done; return 1; } # the killed one's session has to run out first
for force in "" -f; do # nobody uses it, and nobody serves it: the first who opens it waits for its partition table
  anew || fail "not attached again"
  kill -9 $pid; wait $pid
  until_true 50 listed 0 "waits for sheep-nbd" || fail "not waiting"
  timeout 20 /sheep-nbd -d /dev/nbd0 $force || fail "a device that nobody serves is not detached (-d $force)"
  [ ! -e /sys/block/nbd0/pid ] || fail "still attached (-d $force)"
done
anew && kill -TERM $pid && wait $pid || fail "not detached at the end"
for sector in 1024 2048; do
  serve /dev/nbd0 "--block-size $sector"; until_true 300 served || fail "not attached with sectors of $sector"
  [ "$(cat /sys/block/nbd0/queue/logical_block_size)" = $sector ] || fail "another sector than $sector"
  mkfs.ext4 -q -F /dev/nbd0 && mount /dev/nbd0 /mnt && dd if=/dev/urandom of=/mnt/f bs=64k count=16 2>/dev/null && md5sum /mnt/f >/tmp/sum && umount /mnt || fail "no file system on sectors of $sector"
  echo 3 >/proc/sys/vm/drop_caches
  mount /dev/nbd0 /mnt && md5sum -c /tmp/sum && umount /mnt && e2fsck -fn /dev/nbd0 || fail "sectors of $sector do not come back"
  kill -TERM $pid; wait $pid || fail "sheep-nbd did not end well"
  until_true 50 [ ! -e /sys/block/nbd0/pid ] || fail "an unused device stayed attached"
done
modprobe dm-mod; serve; until_true 300 served || fail "not attached"
dmsetup create above --table "0 1024 linear /dev/nbd0 0" || fail dmsetup
/sheep-nbd -d /dev/nbd0 && fail "detached below another device"
dmsetup remove above && mkswap /dev/nbd0 >/dev/null && swapon /dev/nbd0 || fail swapon
/sheep-nbd -d /dev/nbd0 && fail "detached although swap"
swapoff /dev/nbd0 && /sheep-nbd -d /dev/nbd0 && wait $pid || fail "not detached after swap"
serve /dev/nbd0 "--pid-file /nonesuch/pid"; wait $pid && fail "served without its pid file"
until_true 50 [ ! -e /sys/block/nbd0/pid ] || fail "a device whose server did not come up stayed attached"
/sheep-nbd -d /dev/nbd0 && fail "detached twice"
said=$(/sheep-nbd --fork --pid-file /tmp/pid -a $NODES -c /dev/nbd -C $CONNS $NAME 2>>/tmp/nbd.log)
[ "$said" = /dev/nbd0 ] && served || fail "--fork -c /dev/nbd said '$said'"
pid=$(cat /tmp/pid); exec 7</dev/nbd0
ended() { ! kill -0 $pid; }
kill -TERM $pid; until_true 200 ended && listed 0 "waits for sheep-nbd" || fail "a device in use does not wait"
echo "MARK another"
made() { /sheep-nbd --fork -a $NODES -k /tmp/s $NAME-made 7<&-; }
until_true 300 made || fail "the host did not make another disk"
serve; wait $pid && fail "a disk that was made anew is put beneath the device of the old one"
grep "attached to sheepdog:.*/$NAME/[0-9]* already" /tmp/nbd.log || fail "no clear words about another disk of the name"
exec 7<&-
/sheep-nbd -d /dev/nbd0 -f && [ ! -e /sys/block/nbd0/pid ] || fail "not detached from a disk that was deleted"
serve; until_true 300 served || fail "the disk that was made anew is not attached"
kill -TERM $pid; wait $pid || fail "sheep-nbd did not end well"
cat /tmp/nbd.log; dmesg | grep -i nbd | tail -20
echo ATTACH-OK
