# Clusters of real processes for the stories: start, kill, look at.

declare -A node_pid=()
declare -A node_flags=() # words that `sheep daemon` of node N is always started with

# net_up N: N hosts of this run's own and one more for clients, $CLIENT. Needs root; without it the story ends here. net: the rig's cuts.
net_up() {
  [ "$(id -u)" = 0 ] || { echo "    skipped: needs root for network namespaces"; exit 0; }
  NET=sd$$ CLIENT=$(($1 + 1))
  export NET
  "$rig_src/netns-up" "$CLIENT" || die "cannot make network namespaces"
}
net() { "$rig_src/net" "$@"; }
net_down() { [ -z "${NET:-}" ] || "$rig_src/netns-down"; }

# Nodes are hosts of their own (network namespaces) after net_up, else addresses of this machine. inside N: the words before a command that is to
# run on node N's host.
addr() { echo "$(net_of).$1"; }
net_of() { [ -n "${NET:-}" ] && echo 10.77.0 || echo "127.0.$SUBNET"; }
inside() { [ -z "${NET:-}" ] || echo "nsenter --net=/run/netns/${NET}h$1"; }
node_dir() { echo "${NODE_DIRS:-$W}/n$1${NODE_SUBDIR:-}"; }
node_socket() { echo "$(node_dir "$1")/nbd.sock"; }
# uri N NAME[:TAG]: an export by node N's unix socket; tcp_uri: by TCP
uri() { echo "nbd+unix:///$2?socket=$(node_socket "$1")"; }
tcp_uri() { echo "nbd://$(addr "$1")/$2"; }

# on N ARGS...: sheep, asking node N.
on() { local n=$1; shift; SHEEP_ADDRESS=$(addr "$n"):7000 $(inside "$n") timeout "${CLI_LIMIT:-60}" sheep "$@"; }

# node_start N [flags...]: starts node N (its directory may hold an earlier life's data); does not wait.
node_start() {
  local n=$1; shift
  mkdir -p "$(node_dir "$n")"
  echo "=== start $(date +%T.%N)" >>"$W/n$n.log"
  $(inside "$n") sheep daemon "$(node_dir "$n")" --listen "$(addr "$n"):7000" --gossip-port 7946 --join "${JOIN:-$(addr 1),$(addr 2),$(addr 3)}" \
    --nbd "$(addr "$n"):10809" ${NET:+--nbd-insecure} ${node_flags[$n]:-} "$@" >>"$W/n$n.log" 2>&1 &
  node_pid[$n]=$!; track $!
}

node_answers() { on "$1" cluster info; }
node_ready() { listening_at "$(addr "$1")" 10809 && node_answers "$1"; }
nodes_seen() { [ "$(on "$1" node list -r | wc -l)" = "$2" ]; }

# cluster_up N [copies]: N nodes, formatted (with FORMAT_FLAGS), running.
cluster_up() {
  local n=$1 copies=${2:-3} i
  for i in $(seq "$n"); do node_start "$i"; done
  for i in $(seq "$n"); do must "node $i answers" wait_until 60 node_answers "$i"; done
  must "all nodes found" wait_until 60 nodes_seen 1 "$n"
  must "cluster format" on 1 cluster format --copies "$copies" ${FORMAT_FLAGS:-}
  must "cluster is running" wait_until 60 healthy 1
}

# healthy [N]: asked of node N, the cluster is formatted and everything is in sync.
healthy() { on "${1:-1}" cluster info | grep -q '^Cluster status: running'; }
degraded() { on "${1:-1}" cluster info | grep -q '^Cluster status: degraded'; }

# node_kill N: kill -9 of the node's process, as the kernel's out-of-memory killer would. Its guardian (a child) is left to report it.
node_kill() {
  echo "=== kill -9 ${node_pid[$1]} $(date +%T.%N)" >>"$W/n$1.log"
  kill -9 "${node_pid[$1]}"; wait "${node_pid[$1]}" 2>/dev/null
  return 0
}

# node_vanish N...: kill -9 of all their processes at once, the guardians first, as when machines end.
node_vanish() {
  local n all=()
  for n; do
    echo "=== vanish $(date +%T.%N)" >>"$W/n$n.log"
    all=($(children "${node_pid[$n]}") "${all[@]}" "${node_pid[$n]}")
  done
  kill -9 "${all[@]}" 2>/dev/null
  for n; do wait "${node_pid[$n]}" 2>/dev/null; done
  return 0
}

# node_stop N: TERM, the clean way, for which a node gives itself half a minute.
node_stop() { kill "${node_pid[$1]}"; wait_until 60 gone "${node_pid[$1]}" && wait "${node_pid[$1]}" 2>/dev/null; }

# raft_leader N: the number of the node that leads, as node N knows; empty when there is none.
raft_leader() { on "${1:-1}" cluster info --json | jq -r '.leader // empty' | sed -nE "s/^$(net_of)\.([0-9]+)(:.*)?$/\1/p"; }
has_leader() { [ -n "$(raft_leader "$1")" ]; }

# node_field N JQ-FILTER: something of node N's record in `node info --json`, asked of node ${ASK:-1}.
node_field() { on "${ASK:-1}" node info --json | jq -r --arg h "$(addr "$1")" "first(.. | objects | select(.host? == \$h)) | $2"; }
node_used() { node_field "$1" '[.self.disks[]?.used] | add'; }
is_primary() { [ "$(node_field "$1" .primaries)" -gt 0 ]; }

# other_than EXCEPT...: a node of three that is none of these.
other_than() { local i x; for i in 3 2 1; do for x; do [ "$i" = "$x" ] && continue 2; done; echo "$i"; return; done; }

# vdi_field NAME COLUMN: of the working VDI's line in `vdi list -r`: 4 size, 5 used, 6 shared, 8 vid.
vdi_field() { on 1 vdi list -r "$1" | awk -v n="$1" -v c="$2" '$2 == n && $1 != "s" { print $c }'; }

# replicas_equal: the cluster's own comparison of all replicas of all objects.
replicas_equal() { CLI_LIMIT=${1:-120} on 1 cluster check; }

# same_list: `vdi list` is the same on every one of the nodes given. What was agreed a moment ago some of them hear a moment later.
same_list() { wait_until 10 lists_agree "$@" || lists_agree "$@"; }
lists_agree() {
  local first=$1 i how
  for how in "" -r --json; do
    on "$first" vdi list $how >"$W/list.first" || return 1
    for i; do on "$i" vdi list $how >"$W/list.$i" && diff "$W/list.first" "$W/list.$i" || { echo "vdi list $how: node $i differs from $first"; return 1; }; done
  done
}

# nbd_serve SOCKET NAME[:SNAP] [flags]: sheep-nbd, knowing nodes 1 to 3, on host $CLIENT; its pid in $spawned. Waits for the socket.
nbd_serve() {
  local sock=$1 name=$2; shift 2
  echo "=== start $name" >>"$W/sheep-nbd.log"
  $(inside "${CLIENT:-1}") sheep-nbd -a "$(addr 1),$(addr 2),$(addr 3)" -t -k "$sock" "$@" "$name" >>"$W/sheep-nbd.log" 2>&1 &
  track $!
  wait_until 60 listens_on "$sock" $!
}
# listens_on SOCKET PID: PID, or who shares its network, listens there. By looking: the file is there a moment before anybody is.
listens_on() { awk -v s="$1" '$4 == "00010000" && $8 == s { found = 1 } END { exit !found }' "/proc/$2/net/unix"; }
