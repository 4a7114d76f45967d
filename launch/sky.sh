#!/usr/bin/env bash
# Trains on TPUs or GPUs of any cloud, as a managed job of SkyPilot: bash launch/sky.sh VERB --OPTION=VALUE...
#
#   launch   the job; after preemption SkyPilot finds other machines, and it continues
#   status   of the managed jobs
#   logs     follow
#   delete   the job
#
#   --name=NAME
#   --tpu=TYPE            generation and topology, such as v5e:4x4; or
#   --gpus=GPU:N          such as H100:8, on each of --nodes=N machines
#   --config=RECIPE       its name or file, such as deberta_v1_base
#   --workdir=gs://BUCKET/DIR (or s3://)
#                         of the run; in a bucket, so that it outlives the machines
#   --config.a.b=c        overrides, as for deberta_jax.train
#   --infra=WHERE         cloud[/region[/zone]], such as gcp/us-central1 (default: the cheapest)
#   --on-demand           not preemptible
#   --detach              do not follow the job's output
#   --dry-run             print the commands, run nothing

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$ROOT/launch/tpu_types.sh"

main() {
    local verb="${1:---help}"
    if [ "$verb" = --help ]; then usage "$0" && exit; fi
    declare -F "verb_$verb" > /dev/null || fail "'$verb' is no verb; verbs are launch, status, logs, delete"
    read_options "$0" "name tpu gpus nodes config workdir infra" "on-demand detach" "${@:2}"
    need_positive nodes
    "verb_$verb"
}

verb_launch() {
    local machines chip job
    need_name
    need_training
    need_shared_workdir
    if [ -n "${OPTION[tpu]:-}" ] && [ -z "${OPTION[gpus]:-}${OPTION[nodes]:-}" ]; then
        read_tpu "${OPTION[tpu]}"
        chip="$GENERATION"
        machines=(--gpus="tpu-$ACCELERATOR_TYPE" --num-nodes=1)
    elif [ -z "${OPTION[tpu]:-}" ] && [ -n "${OPTION[gpus]:-}" ]; then
        chip=gpu
        machines=(--gpus="${OPTION[gpus]}" --num-nodes="${OPTION[nodes]:-1}")
    else
        fail "give either --tpu, or --gpus (and --nodes)"
    fi
    job=(sky jobs launch "$ROOT/launch/sky.yaml" --yes --name="${OPTION[name]}" --workdir="$ROOT" "${machines[@]}")
    if [ -n "${OPTION[infra]:-}" ]; then job+=(--infra="${OPTION[infra]}"); fi
    if [ -n "${OPTION[on-demand]:-}" ]; then job+=(--no-use-spot); else job+=(--use-spot); fi
    if [ -n "${OPTION[detach]:-}" ]; then job+=(--detach-run); fi
    job+=(--env=CHIP="$chip" --env=CACHE="$(compilation_cache "${OPTION[workdir]}")" --env=CONFIG="${OPTION[config]}")
    job+=(--env=WORKDIR="${OPTION[workdir]}" --env=OVERRIDES="$(quoted "${OVERRIDES[@]}")")
    run "${job[@]}"
}

verb_status() {
    run sky jobs queue
}

verb_logs() {
    need_name
    run sky jobs logs --name="${OPTION[name]}"
}

verb_delete() {
    need_name
    run sky jobs cancel --yes --name="${OPTION[name]}"
}

main "$@"
