# Clusters of real processes for the stories: start, kill, look at.

declare -A node_pid=()

addr() { echo "127.0.$SUBNET.$1"; }
node_dir() { echo "${NODE_DIRS:-$W}/n$1${NODE_SUBDIR:-}"; }
node_socket() { echo "$(node_dir "$1")/nbd.sock"; }
# uri N NAME[:TAG]: an export by node N's unix socket; tcp_uri: by TCP
uri() { echo "nbd+unix:///$2?socket=$(node_socket "$1")"; }
tcp_uri() { echo "nbd://$(addr "$1")/$2"; }

# on N ARGS...: sheep, asking node N.
on() { local n=$1; shift; SHEEP_ADDRESS=$(addr "$n"):7000 timeout "${CLI_LIMIT:-60}" sheep "$@"; }

# node_start N [flags...]: starts node N (its directory may hold an earlier life's data); does not wait.
node_start() {
  local n=$1; shift
  mkdir -p "$(node_dir "$n")"
  echo "=== start $(date +%T.%N)" >>"$W/n$n.log"
  sheep daemon "$(node_dir "$n")" --listen "$(addr "$n"):7000" --gossip-port 7946 --join "${JOIN:-$(addr 1),$(addr 2),$(addr 3)}" \
    --nbd "$(addr "$n"):10809" "$@" >>"$W/n$n.log" 2>&1 &
  node_pid[$n]=$!; track $!
}

node_answers() { on "$1" cluster info; }
node_ready() { listening_at "$(addr "$1")" 10809 && node_answers "$1"; }
nodes_seen() { [ "$(on "$1" node list -r | wc -l)" = "$2" ]; }

# cluster_up N [copies]: N nodes, formatted, running.
cluster_up() {
  local n=$1 copies=${2:-3} i
  for i in $(seq "$n"); do node_start "$i"; done
  for i in $(seq "$n"); do must "node $i answers" wait_until 15 node_answers "$i"; done
  must "all nodes found" wait_until 15 nodes_seen 1 "$n"
  must "cluster format" on 1 cluster format --copies "$copies"
  must "cluster is running" wait_until 15 healthy 1
}

# healthy [N]: asked of node N, the cluster is formatted and everything is in sync.
healthy() { on "${1:-1}" cluster info | grep -q '^Cluster status: running'; }
degraded() { on "${1:-1}" cluster info | grep -q '^Cluster status: degraded'; }

# node_process N: the process that does the work; its parent, when it has one of ours, is the guardian.
node_process() { pgrep -P "${node_pid[$1]}" | head -1 | grep . || echo "${node_pid[$1]}"; }

# node_kill N: kill -9 of the node's process, as the kernel's out-of-memory killer would.
node_kill() {
  local p; p=$(node_process "$1")
  echo "=== kill -9 $p $(date +%T.%N)" >>"$W/n$1.log"
  kill -9 "$p"; wait_until 5 gone "$p"
  node_buried "$1"
}

# node_vanish N: kill -9 of all its processes at once, the guardian too, as when its machine ends.
node_vanish() {
  echo "=== vanish $(date +%T.%N)" >>"$W/n$1.log"
  # shellcheck disable=SC2046 # words wanted
  kill -9 "${node_pid[$1]}" $(children "${node_pid[$1]}") 2>/dev/null
  node_buried "$1"
}

# node_buried N: the rest of a killed node goes by itself, or is ended.
node_buried() {
  wait_until 5 gone "${node_pid[$1]}" || kill -9 "${node_pid[$1]}" $(children "${node_pid[$1]}") 2>/dev/null
  wait "${node_pid[$1]}" 2>/dev/null
  return 0
}

# node_stop N: TERM, the clean way.
node_stop() { kill "${node_pid[$1]}"; wait_until 20 gone "${node_pid[$1]}" && wait "${node_pid[$1]}" 2>/dev/null; }

# raft_leader: the number of the node that leads; empty when there is none. Asked of node N.
raft_leader() {
  on "${1:-1}" cluster info --json | jq -r '[.. | objects | .leader? // empty | strings] | first // empty' |
    sed -nE "s/^127\.0\.$SUBNET\.([0-9]+)(:.*)?$/\1/p"
}
has_leader() { [ -n "$(raft_leader "$1")" ]; }

# not_leader EXCEPT...: a running node that does not lead and is none of these; another one when there is no such.
other_than() { local i x; for i in 3 2 1 4; do for x; do [ "$i" = "$x" ] && continue 2; done; echo "$i"; return; done; }

# used N: bytes that node N stores; vdi_used NAME: bytes that belong to the VDI (as `vdi list -r` has it)
node_used() { on "$1" node info -r | awk -v n="$(($1 - 1))" '$1 == n { print $3 }'; }
vdi_used() { on 1 vdi list -r "$1" | awk -v n="$1" '$2 == n && $1 != "s" { print $5 }'; }

# replicas_equal: the cluster's own comparison of all replicas of all objects.
replicas_equal() { CLI_LIMIT=${1:-120} on 1 cluster check; }

# same_list: `vdi list` is the same on every one of the nodes given.
same_list() {
  local first=$1 i how
  for how in "" -r --json; do
    on "$first" vdi list $how >"$W/list.first" || return 1
    for i; do on "$i" vdi list $how >"$W/list.$i" && diff "$W/list.first" "$W/list.$i" || { echo "vdi list $how: node $i differs from $first"; return 1; }; done
  done
}

# nbd_serve SOCKET NAME[:SNAP] [flags]: sheep-nbd, knowing all nodes; its pid in $spawned. Waits for the socket.
nbd_serve() {
  local sock=$1 name=$2; shift 2
  echo "=== start $name" >>"$W/sheep-nbd.log"
  sheep-nbd -a "$(addr 1),$(addr 2),$(addr 3)" -t -k "$sock" "$@" "$name" >>"$W/sheep-nbd.log" 2>&1 &
  track $!
  wait_until 15 test -S "$sock"
}
