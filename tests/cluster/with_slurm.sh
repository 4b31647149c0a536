#!/usr/bin/env bash
# Run a command on a real single-node Slurm that exists only for it: with_slurm.sh COMMAND...
#
# For root on Debian or Ubuntu; systemd is not needed. Missing packages are installed. The daemons keep everything in a
# folder of their own, listen on the loopback interface only, and are stopped when the command ends, however it ends.
# The node claims 4 CPUs and 2 GPUs (device files that no driver stands behind), so nothing real is needed to queue for.
#
# The command sees SLURM_CONF, and SLURM_TEST_FOLDER with the logs of the daemons.
set -euo pipefail

[ $# -gt 0 ] || { echo "usage: with_slurm.sh COMMAND..." >&2; exit 2; }
[ "$(id -u)" = 0 ] || { echo "with_slurm.sh must be run as root" >&2; exit 2; }
# Debian keeps the daemons out of the PATH of plain users.
export PATH="$PATH:/usr/sbin:/sbin"

install_packages() {
  command -v apt-get >/dev/null || { echo "with_slurm.sh installs Slurm by apt-get, which is not here" >&2; exit 2; }
  echo "Installing Slurm (once)"
  # The packages would start services of their own where an init system runs; the policy forbids that to this call only.
  local policy=/usr/sbin/policy-rc.d made=""
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy" && made=yes
  fi
  local failed=""
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -qq -y --no-install-recommends "$@" </dev/null; } >"$folder/apt.log" 2>&1 \
    || failed=yes
  [ -z "$made" ] || rm -f "$policy"
  [ -z "$failed" ] || { tail -n 20 "$folder/apt.log" >&2; exit 1; }
}

# The folder must be passable for all (munged insists) and writable for none but its owner.
folder=$(mktemp -d /tmp/ocr-eval-slurm.XXXXXX)
chmod 711 "$folder"
pids=()
command=""

stop() {
  local code=$?
  trap '' INT TERM
  if [ -n "$command" ] && kill "$command" 2>/dev/null; then wait "$command" || true; fi
  # Steps outlive their daemon, so whatever still runs is killed first.
  if [ ${#pids[@]} = 3 ]; then
    timeout 10 scancel --user="$(id -un)" --state=PENDING >/dev/null 2>&1 || true
    timeout 10 scancel --user="$(id -un)" --signal=KILL --full >/dev/null 2>&1 || true
    for _ in $(seq 100); do [ -z "$(timeout 5 squeue --noheader 2>/dev/null)" ] && break; sleep 0.1; done
  fi
  # The controller after the node: slurmd ignores SIGTERM while its controller is gone.
  for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
    local pid=${pids[i]}
    kill "$pid" 2>/dev/null || continue
    for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    kill -9 "$pid" 2>/dev/null || true
  done
  if [ "$code" = 0 ] && [ -z "${KEEP_SLURM_LOGS:-}" ]; then
    rm -rf "$folder"
  else
    echo "with_slurm.sh: the command ended with $code; logs of the daemons are in $folder" >&2
  fi
  exit "$code"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

missing=()
for pair in munged:munge slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client; do
  command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
[ ${#missing[@]} = 0 ] || install_packages "${missing[@]}"

free_ports() {
  python3 -c '
import socket
held = [socket.socket() for _ in range(2)]
for s in held: s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in held))'
}
read -r controller_port node_port < <(free_ports)
host=$(hostname -s)
mkdir -p "$folder/state" "$folder/spool"
export SLURM_CONF="$folder/slurm.conf" SLURM_TEST_FOLDER="$folder"

cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort=$controller_port
SlurmdPort=$node_port
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
ReturnToService=2
JobRequeue=0
KillWait=5
MinJobAge=86400
MailProg=/bin/true
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=4 RealMemory=4096 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=60 PriorityTier=1 State=UP
PartitionName=urgent Nodes=$host MaxTime=60 PriorityTier=2 State=UP
CONF
echo "Name=gpu File=/dev/null
Name=gpu File=/dev/zero" >"$folder/gres.conf"

head -c 128 /dev/urandom >"$folder/munge.key"
chmod 600 "$folder/munge.key"

# setsid: a Ctrl-C at the terminal reaches this script, which then stops the daemons in their order.
start() {
  setsid "$@" </dev/null >>"$folder/daemons.log" 2>&1 &
  pids+=($!)
}
start munged --foreground --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
  --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" --seed-file="$folder/munged.seed"
for _ in $(seq 50); do [ -S "$folder/munge.socket" ] && break; sleep 0.1; done
start slurmctld -D -f "$SLURM_CONF"
start slurmd -D -f "$SLURM_CONF" -N "$host"

state=""
for _ in $(seq 300); do
  state=$(sinfo --noheader --format=%T --partition=main 2>/dev/null || true)
  [ "$state" = idle ] && break
  sleep 0.1
done
if [ "$state" != idle ]; then
  echo "with_slurm.sh: the node is '${state:-not there}' after 30 s" >&2
  tail -n 15 "$folder"/*.log >&2
  exit 1
fi
# In the background, for a trap waits for the command in front; there Ctrl-C would be ignored without env.
env --default-signal=INT "$@" <&0 &
command=$!
wait "$command"
