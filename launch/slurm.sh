#!/usr/bin/env bash
# Trains on the GPUs of a Slurm cluster, one process a GPU: bash launch/slurm.sh --OPTION=VALUE...
#
#   --nodes=N              (default: 1)
#   --gpus-per-node=N
#   --config=FILE          the recipe, such as configs/deberta_v1_base.py
#   --workdir=DIR          of the run; on storage that all nodes see
#   --config.a.b=c         overrides, as for deberta_jax.train
#   --name=NAME            of the job (default: deberta-jax)
#   --partition=P, --account=A, --time=T, --cpus-per-task=N     as for sbatch
#   --sessions=N           N jobs one after another, each going on where the last one stopped:
#                          for runs longer than the partition's time limit
#   --dry-run              print the commands, run nothing
#
# Five minutes before its time is over a job writes a checkpoint and stops. After preemption or a
# node's failure Slurm queues it again. The checkout must be on storage that all nodes see, with
# the package and its gpu extra in .venv. `scancel --name=NAME` stops it;
# DIR/slurm_JOB.log is what it says.

set -euo pipefail
# sbatch runs a copy of this file from elsewhere, in the checkout.
if [ -n "${SLURM_JOB_ID:-}" ]; then here="$PWD/launch"; else here="$(dirname "${BASH_SOURCE[0]}")"; fi
source "$here/common.sh"
source "$here/xla_flags.sh"

main() {
    local valued="nodes gpus-per-node config workdir name partition account time cpus-per-task sessions"
    read_options "$0" "$valued" "" "$@"
    need gpus-per-node
    need_positive nodes gpus-per-node cpus-per-task sessions
    need_training
    if [ -n "${SLURM_JOB_ID:-}" ]; then train; else submit "$@"; fi
}

submit() {
    local name option job=(sbatch)
    name="${OPTION[name]:-deberta-jax}"
    job+=(--job-name="$name" --chdir="$ROOT" --nodes="${OPTION[nodes]:-1}")
    # JAX gives the I-th process of a node the I-th GPU, so each must see them all.
    job+=(--ntasks-per-node="${OPTION[gpus-per-node]}" --gres=gpu:"${OPTION[gpus-per-node]}" --exclusive)
    for option in partition account time cpus-per-task; do
        if [ -n "${OPTION[$option]:-}" ]; then job+=("--$option=${OPTION[$option]}"); fi
    done
    job+=(--signal=TERM@300 --requeue --open-mode=append --output="${OPTION[workdir]}/slurm_%A.log")
    if [ -n "${OPTION[sessions]:-}" ]; then job+=(--array="1-${OPTION[sessions]}%1"); fi
    run mkdir -p "${OPTION[workdir]}"
    unset "OPTION[help]"
    run "${job[@]}" "$ROOT/launch/slurm.sh" "${ARGUMENTS[@]}"
    if [ -n "${OPTION[dry-run]:-}" ]; then
        echo "# in the job:"
        train
    fi
}

train() {
    local variable
    variable="$(flags_variable gpu)"
    run export "$variable=$(compiler_flags gpu 1) ${XLA_FLAGS:-}"
    run srun --kill-on-bad-exit=1 "$ROOT/.venv/bin/python" "${TRAIN[@]}"
}

main "$@"
