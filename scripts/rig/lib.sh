# Shared by the rig's scripts and by the stories in tests/: where things are kept, bounded waits, and an
# end that stops by pid whatever was started. Source it; it sets no shell options.

rig_src=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$rig_src/../.." && pwd)
# What takes long to build (guest kernel, disk image) is kept here between runs.
RIG=${RIG:-${XDG_CACHE_HOME:-$HOME/.cache}/sheepdog-rig}
mkdir -p "$RIG"

die() { echo "$(basename "$0"): $*" >&2; exit 1; }

# wait_until SECONDS COMMAND...: runs COMMAND until it succeeds, less often after a while, since asking costs too; fails after SECONDS.
wait_until() {
  local deadline=$(( $(now_ms) + $1 * 1000 )) tries=0; shift
  until "$@" >/dev/null 2>&1; do
    [ "$(now_ms)" -lt "$deadline" ] || return 1
    if [ $((tries += 1)) -lt 30 ]; then sleep 0.05; else sleep 0.2; fi
  done
}

now_ms() { local t=${EPOCHREALTIME/[.,]/}; echo $(( t / 1000 )); }

# gone PID: true when no such process runs. A zombie counts as gone once it has no thread left: its first thread is one already while others, in a system call
# that takes its time, still hold its sockets and files.
gone() { case $(awk '/^State:/{s = $2} /^Threads:/{t = $2} END {print s (t > 1 ? "+" : "")}' "/proc/$1/status" 2>/dev/null) in ''|Z|X) return 0;; *) return 1;; esac; }

# stop PID [SECONDS]: TERM, then KILL after SECONDS (5), waiting for the end in both cases.
stop() {
  gone "$1" || kill "$1" 2>/dev/null
  wait_until "${2:-5}" gone "$1" || { kill -9 "$1" 2>/dev/null; wait_until 5 gone "$1"; }
  wait "$1" 2>/dev/null || true
}

# children PID: all its descendants, children first.
children() {
  local c
  for c in $(pgrep -P "$1"); do children "$c"; echo "$c"; done
}

listening() { ss -Hltn "sport = :$1" | grep -q .; }        # by looking, not by connecting: a connection is an event for a server
listening_at() { ss -Hltn "src $1 and sport = :$2" | grep -q .; }

# witness: our writer and checker, one static program (it also runs inside guests). WITNESS_BUILT=1: of this very tree, a moment ago.
build_witness() {
  local out=$RIG/witness
  [ -z "${WITNESS_BUILT:-}" ] || return 0
  (cd "$repo" && CGO_ENABLED=0 go build -ldflags='-s -w' -trimpath -o "$out.$$" ./tests/witness && mv "$out.$$" "$out")
}
