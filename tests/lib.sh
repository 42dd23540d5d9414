# What the end-to-end stories share: clusters of real processes, guests, checks. A story is one file:
#
#	. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
#	story "one line that says what is shown"
#	cluster_up 3
#	check "the name of a claim" command ...     # counts; a failure does not end the story
#	must  "the name of a claim" command ...     # counts; a failure ends it
#
# Everything lives below one temporary directory, $W; everything started is stopped by pid at the end. Nodes listen on
# 127.0.$SUBNET.1, .2, .3 ... with the usual ports, so that a cluster of the machine's own is not disturbed.
#
# Environment: SHEEP_BIN (folder with sheep and sheep-nbd; built from the tree when not given), KEEP=1 (keep $W),
# STORY_LOG (file that collects the results), VERBOSE=1 (command output also of checks that pass).
set -uo pipefail
tests_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$tests_dir/../scripts/rig/lib.sh"
PATH=$PATH:/usr/sbin:/sbin
. "$tests_dir/lib-cluster.sh"
. "$tests_dir/lib-guest.sh"

SUBNET=${SUBNET:-7}
W=$(mktemp -d "${TMPDIR:-/tmp}/story.XXXXXX"); cd "$W" # what tools drop into the current folder goes with it
story_name=$(basename "$0"); story_told=; story_failed=0; story_checks=0; story_start=$(now_ms)
started=() # "pid starttime", in order

story() {
  story_told=1
  echo "=== RUN   stories/$story_name"
  echo "    $*"
  need_binaries
}

# need_binaries: sheep, sheep-nbd and the witness on PATH.
need_binaries() {
  build_witness || die "cannot build the witness"
  if [ -z "${SHEEP_BIN:-}" ]; then
    SHEEP_BIN=$W/bin; mkdir -p "$SHEEP_BIN"
    (cd "$repo" && go build -o "$SHEEP_BIN/" ./cmd/...) || die "cannot build ./cmd/..."
  fi
  PATH=$SHEEP_BIN:$RIG:$PATH
}

result() { # result PASS|FAIL NAME MILLISECONDS
  printf -- '    --- %s: stories/%s/%s (%d.%02ds)\n' "$1" "$story_name" "${2// /_}" $(($3 / 1000)) $(($3 % 1000 / 10))
  [ -n "${STORY_LOG:-}" ] && echo "$1 $story_name/${2// /_}" >>"$STORY_LOG"
  story_checks=$((story_checks + 1))
  [ "$1" = PASS ] || story_failed=$((story_failed + 1))
}

# check NAME COMMAND...: counts the command's success; shows its output when it fails.
check() {
  local name=$1 t=$(now_ms) rc; shift
  "$@" >"$W/check.out" 2>&1; rc=$?
  if [ $rc = 0 ]; then result PASS "$name" $(($(now_ms) - t)); [ -n "${VERBOSE:-}" ] && sed 's/^/        /' "$W/check.out"; return 0; fi
  result FAIL "$name" $(($(now_ms) - t))
  echo "        $* : exit status $rc"; tail -40 "$W/check.out" | sed 's/^/        /'
  return 1
}

must() { check "$@" || { echo "        the story cannot go on"; exit 1; }; }

# expect_rc STATUS COMMAND...: exactly that exit status, and for a failure exactly one line on stderr, the last one, beside what a
# server logs there.
log_line='^time=[^ ]* level='
expect_rc() {
  local want=$1 rc; shift
  "$@" >"$W/out" 2>"$W/err" <"${STDIN:-/dev/null}"; rc=$?
  cat "$W/out" "$W/err"
  [ $rc = "$want" ] || { echo "exit status $rc, not $want"; return 1; }
  [ "$want" = 0 ] && return 0
  [ "$(grep -vc "$log_line" "$W/err")" = 1 ] || { echo "stderr has $(grep -vc "$log_line" "$W/err") lines, not one"; return 1; }
  ! tail -1 "$W/err" | grep -q "$log_line" || { echo "the last line on stderr is not the error"; return 1; }
}

expect_failure() { ! "$@"; }
below() { awk -v v="$1" -v l="$2" 'BEGIN{ if (v == "" || v + 0 >= l + 0) { print v " is not below " l; exit 1 } print v " < " l }'; }
says() { grep -qE -- "$1" "$2"; }          # says REGEX FILE
silent() { local re=$1; shift; ! grep -hE -- "$re" "$@"; } # no line of the FILES matches REGEX

# freeze PID...: SIGSTOP, and a wait until every thread has stopped: the signal reaches one of them, which has to run before it stops the others.
# (One that ended meanwhile is no reason not to wait for the others. What strace holds is "t (tracing stop)" then.)
freeze() { kill -STOP "$@" 2>/dev/null; wait_until 30 frozen "$@"; }
frozen() { local p; for p; do [ -z "$(grep -hs '^State:' /proc/"$p"/task/*/status | grep -v -e 'T (stopped)' -e 't (tracing stop)')" ] || return 1; done; }

# spawn COMMAND...: in the background, stopped at the end; its pid in $spawned.
spawn() { "$@" & track $!; }

# track PID: to be stopped at the end. Its start time goes with it, so that a later process with the same number is safe.
track() { spawned=$1; started+=("$1 $(born "$1")"); }
born() { awk '{ sub(/.*\) /, ""); print $20 }' "/proc/$1/stat" 2>/dev/null; }

finish() {
  local rc=$? status=PASS took
  trap - EXIT INT TERM
  [ "$rc" = 0 ] || [ $story_failed -gt 0 ] || result FAIL "ran to its end" 0
  [ $story_failed = 0 ] || { status=FAIL; tell_logs; }
  stop_started 2>/dev/null # the shell would tell of each that was killed
  net_down
  declare -F story_cleanup >/dev/null && story_cleanup
  if [ -n "${KEEP:-}" ]; then echo "    kept: $W"; else rm -rf "$W" >/dev/null 2>&1 & fi # gigabytes: nobody has to wait for that
  took=$(($(now_ms) - story_start))
  [ -z "$story_told" ] || printf -- '--- %s: stories/%s (%d.%02ds)\n' $status "$story_name" $((took / 1000)) $((took % 1000 / 10))
  [ $status = PASS ]; exit
}

# stop_started: everything that was started and its descendants, newest first; what is stopped (SIGSTOP) goes on first. Nodes and sheep-nbd are killed: what they would
# make durable is removed a moment later (that they end well when told is shown where a story says so).
stop_started() {
  local i pid when all=() c ours=()
  for ((i = ${#started[@]} - 1; i >= 0; i--)); do
    read -r pid when <<<"${started[i]}"
    [ -n "$when" ] && [ "$(born "$pid")" = "$when" ] || continue
    all+=("$pid"); for c in $(children "$pid"); do all+=("$c"); done
  done
  [ ${#all[@]} = 0 ] && return
  for pid in "${all[@]}"; do case $(cat "/proc/$pid/comm" 2>/dev/null) in sheep|sheep-nbd) ours+=("$pid") ;; esac; done
  [ ${#ours[@]} = 0 ] || kill -9 "${ours[@]}" 2>/dev/null
  kill -CONT "${all[@]}" 2>/dev/null; kill "${all[@]}" 2>/dev/null
  for pid in "${all[@]}"; do stop "$pid" 8; done
}

trap finish EXIT
trap 'exit 130' INT TERM

# tell_logs: the ends of all logs, when something failed.
tell_logs() {
  local f
  for f in "$W"/*.log; do
    [ -s "$f" ] || continue
    echo "        ---- $(basename "$f")"; tail -"${LOG_LINES:-25}" "$f" | cut -c1-300 | sed 's/^/        /'
  done
}
