#!/usr/bin/env bash
# Runs N processes of one verb on this machine, as a pod runs one on every host:
#   bash launch/multiprocess.sh N VERB FLAG...
#   bash launch/multiprocess.sh 2 train --config=quickstart --workdir=runs/two
# DEVICES=K gives each process K CPU devices. Process 0 prints; the output of the others
# goes to process_I.log in LOGS (default: the working directory). When one fails, all end.
# SIGTERM and Ctrl-C stop them all at one step, with a checkpoint: status 143, as for one process.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ $# -lt 2 || ! "$1" =~ ^[1-9][0-9]*$ ]]; then
  echo "error: usage: bash launch/multiprocess.sh N VERB FLAG..., such as 2 train --config=..." >&2
  exit 2
fi
processes="$1" verb="$2"
shift 2
logs="${LOGS:-.}"
mkdir -p "$logs"
if [[ -n "${DEVICES:-}" ]]; then
  export JAX_PLATFORMS=cpu
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$DEVICES"
fi
python="${PYTHON:-python3}"
if [[ -z "${PYTHON:-}" && -x .venv/bin/python ]]; then
  python=.venv/bin/python
fi
port="$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"

started=()
trap 'kill -KILL "${started[@]}" 2>/dev/null || true' EXIT
for ((index = 0; index < processes; index++)); do
  command=("$python" -m "deberta_jax.$verb" "$@" "--distributed=127.0.0.1:$port,$processes,$index")
  if ((index == 0)); then
    "${command[@]}" &
  else
    "${command[@]}" >"$logs/process_$index.log" 2>&1 &
  fi
  started+=("$!")
done
trap 'stop_requested=yes; kill -TERM "${started[@]}" 2>/dev/null || true' TERM INT

stopped=143 status=0 left="$processes"
while ((left > 0 && (status == 0 || status == stopped))); do
  stop_requested="" ended=0
  wait -n || ended=$?
  # A signal interrupts the wait: the processes have not ended yet.
  if [[ -z "$stop_requested" ]]; then
    left=$((left - 1))
    ((ended == 0)) || status="$ended"
  fi
done
if ((status && status != stopped)); then
  echo "error: a process of the job failed; see $logs/process_*.log" >&2
fi
exit "$status"
