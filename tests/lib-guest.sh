# Guests for the stories: QEMU with the disk of scripts/rig/make-disk, driven over its serial console.

declare -A guest_pid=() guest_in=() guest_began=() guest_still=()

# disk_image: makes (or finds) the bootable disk as $W/disk.img.
disk_image() { [ -e "$W/disk.img" ] || "$tests_dir/../scripts/rig/make-disk" "$W/disk.img"; }

# guest_start NAME QEMU-OPTIONS...: boots; the console is $W/guest-NAME.log. TCG: see the rig's notes on KVM.
guest_start() {
  local name=$1 fd; shift
  rm -f "$W/guest-$name.in"; mkfifo "$W/guest-$name.in"
  exec {fd}<>"$W/guest-$name.in"; guest_in[$name]=$fd
  timeout -k 5 "${GUEST_LIMIT:-600}" qemu-system-x86_64 -M pc -accel "${ACCEL:-tcg}" -cpu "${CPU:-max}" -m "${MEM:-192}" -smp 1 \
    -nodefaults -no-user-config -display none -serial stdio -no-reboot "$@" \
    <"$W/guest-$name.in" > >(stdbuf -oL tr -d '\r' >"$W/guest-$name.log") 2>"$W/guest-$name-qemu.log" &
  guest_pid[$name]=$!; track $!
}

guest_run() { echo "$2" >&"${guest_in[$1]}"; }               # guest_run NAME COMMAND: typed on the console
guest_said() { grep -qE -- "$2" "$W/guest-$1.log"; }
guest_alive_until() { guest_said "$1" "$2" || gone "${guest_pid[$1]}"; }
# guest_wait NAME REGEX SECONDS
guest_wait() { wait_until "$3" guest_alive_until "$1" "$2"; guest_said "$1" "$2" || { tail -5 "$W/guest-$1.log"; return 1; }; }
guest_ended() { wait_until "${2:-20}" gone "${guest_pid[$1]}" && wait "${guest_pid[$1]}"; }
# guest_pause NAME: the longest that it saw, less what the whole machine stood still around it. (The guest's seconds begin when its witness does, some time after
# it was told to.)
guest_pause() {
  touch "$W/still-$1.log" # none for what guest_write did not begin
  sed -nE 's/^FILES-END .*longest-pause=([0-9.]+) at=([0-9.]+).*/\1 \2/p' "$W/guest-$1.log" | tail -1 |
    awk -v began="${guest_began[$1]:-0}" '
      file == 1 { n++; from[n] = $2; to[n] = $3; next }
      { a = began + $2 - $1 - 3; b = began + $2 + 3
        for (i = 1; i <= n; i++) { f = from[i] > a ? from[i] : a; t = to[i] < b ? to[i] : b; if (t > f) still += t - f }
        printf "%.3f\n", ($1 > still ? $1 - still : 0) }' file=1 "$W/still-$1.log" file=2 -
}
guest_rounds() { awk '/^ROUND /{n=$2}END{print n+0}' "$W/guest-$1.log"; }
guest_past() { [ "$(guest_rounds "$1")" -ge "$2" ]; }

# guest_boot NAME QEMU-OPTIONS...: starts and waits for its shell.
guest_boot() { guest_start "$@"; must "guest $1 boots" guest_wait "$1" '^GUEST-UP' 180; }

# guest_write NAME [SECONDS]: checksummed files until guest_verify (or for SECONDS).
guest_write() {
  spawn witness still >"$W/still-$1.log"; guest_still[$1]=$spawned guest_began[$1]=${EPOCHREALTIME/,/.}
  guest_run "$1" "witness files /data ${2:-500}"
  must "guest $1 writes" wait_until 90 guest_past "$1" 16
}

# guest_verify NAME LIMIT [COMMAND]: ends the writing (by COMMAND, where it does not read the console), and checks: all files as written, no I/O error, longest pause below LIMIT seconds,
# file system clean; then the guest powers itself off.
guest_verify() {
  guest_run "$1" "${3:-stop}"
  check "guest $1 reads all its files back" guest_wait "$1" '^FILES-VERIFIED [1-9]' 180
  check "guest $1 longest pause below $2 s" below "$(guest_pause "$1")" "$2"
  [ -z "${guest_still[$1]:-}" ] || kill "${guest_still[$1]}"
  guest_run "$1" fsck-root
  check "guest $1 saw no I/O error and its file system is clean" guest_wait "$1" '^FSCK-CLEAN' 180
  guest_run "$1" "poweroff -f"
  check "guest $1 ends" guest_ended "$1" 60
}
