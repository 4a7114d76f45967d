#!/usr/bin/env bash
# Runs N processes of one verb on this machine, as a pod runs one on every host:
#   bash launch/multiprocess.sh N VERB FLAG...
#   bash launch/multiprocess.sh 2 train --config=configs/quickstart.py --workdir=runs/two
# DEVICES=K gives each process K CPU devices. Process 0 speaks; what the others say is in
# process_I.log beside the run (in LOGS, the working directory unless set). When one fails, all end.
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
trap 'kill "${started[@]}" 2>/dev/null || true' EXIT
for ((index = 0; index < processes; index++)); do
  command=("$python" -m "deberta_jax.$verb" "$@" "--distributed=127.0.0.1:$port,$processes,$index")
  if ((index == 0)); then
    "${command[@]}" &
  else
    "${command[@]}" >"$logs/process_$index.log" 2>&1 &
  fi
  started+=("$!")
done
trap 'kill -TERM "${started[@]}" 2>/dev/null || true' TERM INT

status=0
for ((left = processes; left > 0; left--)); do
  wait -n "${started[@]}" || { status=$?; break; }
done
if ((status)); then
  echo "error: a process of the job failed; see $logs/process_*.log" >&2
  sleep 1
fi
exit "$status"
