# Disks whose power can be cut, on this machine, without a virtual machine. Source after lib.sh. Needs root (loop, mount, FUSE).
#
#   disk_up    W how fs size   makes W/disk and mounts it on W/m; MKFS_FLAGS are ext4's
#   disk_cut   W               the power fails: whatever the scheme does not keep is gone
#   disk_again W [how]         what is left is mounted on W/m again (plainly, on a healthy disk, unless how says otherwise)
#   disk_down  W               unmounts; removes nothing
#
# how = volatile: nbdkit's cache filter in writeback mode, as a FUSE file, as a loop device: a disk with a volatile write cache, whose
#                 writes reach W/disk only at FLUSH or FUA. The cut kills nbdkit. The worst case, the same every time.
#                 (In blocks of 4 KiB: with nbdkit's 64 a small write costs sixteen times its size.)
# how = shutdown: a loop device; the cut is the file system's own shutdown without log flush: every dirty page is lost, but what
#                 has reached the device stays (so it does not catch a lie through O_DIRECT without FLUSH).
# Before a cut, stop (SIGSTOP) what runs on the disk: a power cut gives nobody an I/O error to react to; kill it after the cut.

FS_IOC_SHUTDOWN=0x8004587d # ext4, xfs; argument 2: no log flush

# By looking: a file system that was shut down answers even stat with EIO, and then mountpoint(1) says no.
mounted() { grep -qF " $1 " /proc/mounts; }
not_mounted() { ! mounted "$1"; }
unmount() {
  mounted "$1" || return 0
  umount "$1" 2>/dev/null || wait_until 20 umount "$1" || umount -l "$1"
  wait_until 20 not_mounted "$1"
}

# disk_back W how: what W/disk becomes seen through, in $back.
disk_back() {
  local w=$1
  echo "$2" >"$w/how"
  back=$w/disk
  [ "$2" = volatile ] || return 0
  : >"$w/view"
  nbdkit -U "$w/s" -P "$w/nbdkit.pid" --filter=cache file "$w/disk" cache=writeback cache-max-size=2G cache-min-block-size=4K cache-on-read=false
  nbdfuse "$w/view" --unix "$w/s" 2>"$w/nbdfuse.log" & echo $! >"$w/nbdfuse.pid"; disown
  wait_until 30 mounted "$w/view" || die "nbdfuse did not mount"
  back=$w/view
}

disk_up() {
  local w=$1 how=$2 fs=$3 size=$4 back
  mkdir -p "$w/m"; truncate -s "$size" "$w/disk"
  disk_back "$w" "$how"
  case $fs in
    ext4) mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 ${MKFS_FLAGS:-} "$back" ;;
    *) "mkfs.$fs" -q "$back" ;;
  esac
  sync "$back"
  losetup --show -f "$back" >"$w/loop"
  mount "$(cat "$w/loop")" "$w/m"
}

disk_cut() {
  local w=$1
  if [ "$(cat "$w/how")" = volatile ]; then kill -9 "$(cat "$w/nbdkit.pid")"
  else python3 -c "import fcntl,os,struct,sys; fcntl.ioctl(os.open(sys.argv[1],0),$FS_IOC_SHUTDOWN,struct.pack('I',2))" "$w/m"
  fi
}

disk_down() {
  local w=$1
  unmount "$w/m"
  [ -s "$w/loop" ] && losetup -d "$(cat "$w/loop")" 2>/dev/null; : >"$w/loop"
  if [ "$(cat "$w/how")" = volatile ]; then
    # nbdfuse aborts when its server was killed (an assertion of libnbd 1.14); what it leaves mounted is let go
    unmount "$w/view"
    [ -s "$w/nbdfuse.pid" ] && wait_until 20 gone "$(cat "$w/nbdfuse.pid")"
    [ -s "$w/nbdkit.pid" ] && kill "$(cat "$w/nbdkit.pid")" 2>/dev/null
    rm -f "$w/nbdkit.pid" "$w/s"
  fi
  return 0
}

disk_again() {
  local back
  disk_down "$1"
  disk_back "$1" "${2:-plain}"
  losetup --show -f "$back" >"$1/loop"
  mount "$(cat "$1/loop")" "$1/m"
}
