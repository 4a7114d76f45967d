#!/usr/bin/env bash
# Trains on the GPUs of a Slurm cluster, one process a GPU: bash launch/slurm.sh --OPTION=VALUE...
#
#   --nodes=N              (default: 1)
#   --gpus-per-node=N
#   --config=RECIPE        its name or file, such as deberta_v1_base
#   --workdir=DIR          of the run; on storage that all nodes see, or in a bucket: gs://BUCKET/DIR
#   --logs=DIR             where the jobs' output goes (default: the workdir, which is then local)
#   --config.a.b=c         overrides, as for deberta_jax.train
#   --name=NAME            of the job (default: deberta-jax)
#   --partition=P, --account=A, --time=T, --cpus-per-task=N     as for sbatch
#   --sessions=N           N jobs one after another, each continuing where the last one stopped:
#                          for runs longer than the partition's time limit
#   --variants=FILE        an array of jobs, one for each line of FILE, which has a run's own
#                          arguments (deberta_jax.sweep writes it); --workdir is for the logs
#   --at-once=N            that many of them at the same time
#   --dry-run              print the commands, run nothing
#
# A job writes a checkpoint and stops five minutes before its time limit. After preemption or a
# node's failure Slurm queues it again. The checkout must be on storage that all nodes see, with
# the package and its gpu extra in .venv (or in what PYTHON names). `scancel --name=NAME` stops it;
# its output is in DIR/slurm_JOB.log of --logs.

set -euo pipefail
# sbatch runs a copy of this file that is elsewhere, in the checkout.
here="$(dirname "${BASH_SOURCE[0]}")"
if [ ! -f "$here/common.sh" ]; then here="$PWD/launch"; fi
source "$here/common.sh"
source "$here/xla_flags.sh"

PYTHON="${PYTHON:-$ROOT/.venv/bin/python}"

main() {
    local valued="nodes gpus-per-node config workdir name partition account time cpus-per-task"
    valued+=" sessions variants at-once logs"
    read_options "$0" "$valued" "" "$@"
    need gpus-per-node
    need_positive nodes gpus-per-node cpus-per-task sessions at-once
    [ -z "${OPTION[sessions]:-}" ] || [ -z "${OPTION[variants]:-}" ] ||
        fail "--sessions and --variants exclude each other; run the sweep again for another session"
    [ -z "${OPTION[at-once]:-}" ] || [ -n "${OPTION[variants]:-}" ] || fail "--at-once is for --variants"
    need_training
    is_url "${OPTION[workdir]}" || [[ "${OPTION[workdir]}" == /* ]] ||
        fail "--workdir=${OPTION[workdir]} must be a whole path, on storage that all nodes see, or gs://BUCKET/DIR"
    LOGS="${OPTION[logs]:-${OPTION[workdir]}}"
    [[ "$LOGS" == /* ]] || fail "--logs=${OPTION[logs]:-} must be a whole path, on storage that all nodes see"
    if [ -n "${SLURM_JOB_ID:-}" ]; then train; else submit "$@"; fi
}

submit() {
    local option argument job variants arguments=()
    [ -n "${OPTION[dry-run]:-}" ] || [ -n "$(command -v "$PYTHON")" ] ||
        fail "there is no $PYTHON; make it: python3 -m venv .venv && .venv/bin/pip install -e '.[gpu]'"
    job=(sbatch --job-name="${OPTION[name]:-deberta-jax}" --chdir="$ROOT" --nodes="${OPTION[nodes]:-1}")
    job+=(--gpus-per-node="${OPTION[gpus-per-node]}" --ntasks-per-node="${OPTION[gpus-per-node]}")
    for option in partition account time cpus-per-task; do
        if [ -n "${OPTION[$option]:-}" ]; then job+=("--$option=${OPTION[$option]}"); fi
    done
    job+=(--signal=TERM@300 --requeue --open-mode=append --output="$LOGS/slurm_%j.log")
    if [ -n "${OPTION[variants]:-}" ]; then
        [ -f "${OPTION[variants]}" ] || fail "--variants=${OPTION[variants]}: there is no such file"
        variants="$(wc -l < "${OPTION[variants]}")"
        job+=(--array="1-$variants${OPTION[at-once]:+%${OPTION[at-once]}}")
    fi
    if [ -n "${OPTION[sessions]:-}" ]; then job+=(--array="1-${OPTION[sessions]}%1"); fi
    for argument in "$@"; do
        if [ "$argument" != --dry-run ]; then arguments+=("$argument"); fi
    done
    run mkdir -p "$LOGS"
    run "${job[@]}" "$ROOT/launch/slurm.sh" "${arguments[@]}"
    if [ -n "${OPTION[dry-run]:-}" ]; then
        for ((SLURM_ARRAY_TASK_ID = 1; SLURM_ARRAY_TASK_ID <= ${variants:-1}; SLURM_ARRAY_TASK_ID++)); do
            train | sed 's/^/# in the job: /'
        done
    fi
}

# In the job. JAX gives the I-th process of a node the I-th GPU, so each must see them all.
train() {
    local variant
    if [ -n "${OPTION[variants]:-}" ]; then
        eval "variant=($(sed -n "${SLURM_ARRAY_TASK_ID}p" "${OPTION[variants]}"))"
        TRAIN=(-m deberta_jax.train --config="${OPTION[config]}" --distributed=auto "${OVERRIDES[@]}" "${variant[@]}")
    fi
    run export XLA_FLAGS="$(compiler_flags gpu 1) ${XLA_FLAGS:-}" \
        JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$(compilation_cache "${OPTION[workdir]}")}"
    run srun --kill-on-bad-exit=1 --gpu-bind=none "$PYTHON" "${TRAIN[@]}"
}

main "$@"
