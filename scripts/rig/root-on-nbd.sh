# A guest whose root is /dev/nbd0, attached by sheep-nbd in the initial ramdisk. Sourced by stories, as root of a network namespace.

# root_image OUT MIB: an ext4 file system that boots: busybox, e2fsck, witness, /sbin/init.
root_image() {
  rm -rf "$W/rootfs"; mkdir -p "$W/rootfs/data" && (cd "$W/rootfs" && gzip -dc "$RIG/initramfs.cpio.gz" | cpio -idm --quiet && rm -f init) || return 1
  cp "$RIG/witness" "$W/rootfs/bin/witness"
  # The console's shell must not need the disk that it is there to bring back: it runs from memory.
  cat >"$W/rootfs/sbin/init" <<'INIT'
#!/bin/busybox sh
exec /run/rescue/busybox sh /run/rescue/console
INIT
  cat >"$W/rootfs/sbin/fsck-root" <<'FSCK'
#!/bin/busybox sh
bad=$(dmesg | grep -ciE 'I/O error|EXT4-fs error|Other side returned error')
echo "IO-ERRORS $bad"; [ "$bad" = 0 ] || dmesg | grep -iE 'I/O error|EXT4-fs error|Other side returned error' | head
sync; mount -o remount,ro / || exit 1
echo 3 >/proc/sys/vm/drop_caches
e2fsck -fn /dev/nbd0 || exit 1
[ "$bad" = 0 ] && echo FSCK-CLEAN
FSCK
  chmod +x "$W/rootfs/sbin/init" "$W/rootfs/sbin/fsck-root"
  rm -f "$1"; truncate -s "$2M" "$1"
  mke2fs -q -F -t ext4 -L root -J size=8 -E lazy_itable_init=0,root_owner=0:0 -d "$W/rootfs" "$1"
}

# root_initrd OUT SHEEP-NBD NODES NAME: the ramdisk that attaches and hands over.
root_initrd() {
  rm -rf "$W/initrd"; mkdir -p "$W/initrd"
  cp "$2" "$W/initrd/sheep-nbd"
  cat >"$W/initrd/init" <<INIT
#!/bin/busybox sh
NODES=$3 NAME=$4
INIT
  cat >>"$W/initrd/init" <<'INIT'
/bin/busybox --install -s /bin
export PATH=/bin:/sbin HOME=/
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev; mount -t tmpfs r /run
for m in virtio_pci virtio_net nbd; do modprobe $m; done
ip link set lo up; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2
# What brings the disk back lies in memory, and stays when the root is switched.
mkdir -p /run/rescue; cp /sheep-nbd /bin/busybox /run/rescue/
cat >/run/rescue/serve <<SERVE
/run/rescue/sheep-nbd -a $NODES -c /dev/nbd0 -C 4 --io-timeout 8s --log-level info $NAME >>/run/rescue/log 2>&1 &
echo \$! >/run/rescue/pid
SERVE
cat >/run/rescue/restart <<'RESTART'
# restart SIGNAL: sheep-nbd ends, and is started again. Nothing in here is on the disk.
bb=/run/rescue/busybox
old=$($bb cat /run/rescue/pid); $bb kill -$1 $old
while [ -d /proc/$old ] && ! $bb grep -qs '^State:.Z' /proc/$old/status; do $bb usleep 20000; done
[ -e /sys/block/nbd0/pid ] || echo "ROOT-DETACHED"
. /run/rescue/serve
new=$($bb cat /run/rescue/pid) i=0
while ! $bb grep -q "^process $new " /run/sheep-nbd/nbd0.lock; do
  i=$((i+1))
  [ -d /proc/$new ] && [ $i -lt 1500 ] || { $bb kill -QUIT $new; $bb usleep 200000; $bb tail -200 /run/rescue/log; echo RESTART-FAILED; exit 1; }
  $bb usleep 50000
done
echo "RESTARTED $1"
RESTART
cat >/run/rescue/console <<'CONSOLE'
export PATH=/bin:/sbin HOME=/
/run/rescue/busybox stty -echo </dev/ttyS0
/run/rescue/busybox dmesg -c >/run/rescue/dmesg
echo "GUEST-UP $(/run/rescue/busybox cut -d' ' -f1 /proc/uptime) root $(/run/rescue/busybox awk '$2=="/"{print $1,$3}' /proc/mounts | /run/rescue/busybox tail -1)"
/run/rescue/busybox mkfifo /run/rescue/witness; exec 9<>/run/rescue/witness # what the witness reads: it runs beside the console
while read -r line; do
  /run/rescue/busybox sh -c "$line"
  echo "JOB-RC=$?"
done </dev/ttyS0
CONSOLE
. /run/rescue/serve
i=0; until grep -qs "^process" /run/sheep-nbd/nbd0.lock && mount -t ext4 /dev/nbd0 /mnt 2>/dev/null; do i=$((i+1)); [ $i -gt 1500 ] && { cat /run/rescue/log; echo "NO-ROOT"; poweroff -f; }; usleep 50000; done
for d in dev proc sys run; do mount --move /$d /mnt/$d; done
exec switch_root /mnt /sbin/init
INIT
  chmod +x "$W/initrd/init"
  cp "$RIG/initramfs.cpio.gz" "$1" && (cd "$W/initrd" && find . -mindepth 1 | cpio -o -H newc -R 0:0 --quiet) | gzip -1 >>"$1"
}
