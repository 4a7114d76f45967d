#!/usr/bin/env bash
# Trains on Cloud TPU VMs, by gcloud: bash launch/tpu_vm.sh VERB --OPTION=VALUE...
#
#   launch   all it takes: create, wait, setup, train
#   create   ask for the TPU; a queued resource waits until there is capacity
#   wait     until the TPU is there
#   setup    bring the checkout (what is committed) to every host and install it
#   train    start training on every host; it goes on from the last checkpoint
#   logs     follow what host 0 says (--worker=N: another)
#   status   of the TPU
#   stop     stop training, with a checkpoint; the TPU stays
#   resume   after preemption: delete what is left, then launch; same options, same workdir
#   delete   the TPU
#
#   --name=NAME --zone=ZONE [--project=PROJECT]
#   --tpu=TYPE            generation and topology, such as v5e:4x4 or v5p:4x4x4
#   --slices=N            that many of them, over the data-center network
#   --direct              a TPU VM now or never, not a queued resource; one slice
#   --spot, --reserved    preemptible, or from a reservation
#   --service-account=A   what the hosts act as; it must be able to write to the bucket
#   --config=RECIPE       its name or file, such as deberta_v1_base
#   --workdir=gs://BUCKET/DIR
#                         of the run; in a bucket, so that it outlives the TPU
#   --bucket=BUCKET       mount this bucket at /gcs on every host, for --workdir=/gcs/DIR
#   --config.a.b=c        overrides, as for deberta_jax.train
#   --dry-run             print the commands, run nothing

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$ROOT/launch/tpu_types.sh"

PACKAGE="${TMPDIR:-/tmp}/deberta_jax.tar.gz"

main() {
    local verb="${1:---help}"
    if [ "$verb" = --help ]; then usage "$0" && exit; fi
    declare -F "verb_$verb" > /dev/null ||
        fail "'$verb' is no verb; verbs are launch, create, wait, setup, train, logs, status, stop, resume, delete"
    read_options "$0" "name zone project tpu slices worker service-account bucket config workdir" \
        "direct spot reserved" "${@:2}"
    need_name
    need zone
    need_positive slices
    SLICES="${OPTION[slices]:-1}"
    PLACE=(--zone="${OPTION[zone]}")
    if [ -n "${OPTION[project]:-}" ]; then PLACE+=(--project="${OPTION[project]}"); fi
    if [ -n "${OPTION[direct]:-}" ]; then
        [ "$SLICES" = 1 ] || fail "--direct makes one slice; leave it out for --slices=$SLICES"
        RESOURCE=(gcloud compute tpus tpu-vm)
        EVERYWHERE=(--worker=all)
    else
        RESOURCE=(gcloud compute tpus queued-resources)
        EVERYWHERE=(--node=all --worker=all)
    fi
    check_for "$verb"
    "verb_$verb"
}

# All that a verb and those it calls need, before anything is paid for.
check_for() {
    case "$1" in create | train | launch | resume)
        need tpu
        read_tpu "${OPTION[tpu]}"
        [ -z "${OPTION[spot]:-}" ] || [ -z "${OPTION[reserved]:-}" ] || fail "--spot and --reserved exclude each other"
        ;;
    esac
    case "$1" in train | launch | resume)
        need_training
        need_shared_workdir
        ;;
    esac
}

verb_launch() {
    verb_create
    verb_wait
    verb_setup
    verb_train
}

verb_create() {
    local asked=("${RESOURCE[@]}" create "${OPTION[name]}" "${PLACE[@]}" --accelerator-type="$ACCELERATOR_TYPE")
    if [ -n "${OPTION[direct]:-}" ]; then
        asked+=(--version="${RUNTIME[$GENERATION]}")
    else
        asked+=(--runtime-version="${RUNTIME[$GENERATION]}")
        if [ "$SLICES" = 1 ]; then
            asked+=(--node-id="${OPTION[name]}")
        else
            asked+=(--node-count="$SLICES" --node-prefix="${OPTION[name]}")
        fi
    fi
    for flag in spot reserved; do
        if [ -n "${OPTION[$flag]:-}" ]; then asked+=("--$flag"); fi
    done
    asked+=(--scopes=https://www.googleapis.com/auth/cloud-platform)
    if [ -n "${OPTION[service-account]:-}" ]; then asked+=(--service-account="${OPTION[service-account]}"); fi
    run "${asked[@]}"
}

verb_wait() {
    local state
    if [ -n "${OPTION[dry-run]:-}" ]; then
        echo "# every minute, until it says ACTIVE or READY:"
        verb_status
        return
    fi
    while true; do
        state="$(verb_status)"
        case "$state" in
            ACTIVE | READY) return ;;
            FAILED | SUSPENDED | SUSPENDING | PREEMPTED | TERMINATED)
                fail "${OPTION[name]} is $state; 'resume' asks for it again"
                ;;
        esac
        echo "${OPTION[name]} is $state; looking again in a minute"
        sleep 60
    done
}

verb_status() {
    local field="state.state"
    if [ -n "${OPTION[direct]:-}" ]; then field=state; fi
    run "${RESOURCE[@]}" describe "${OPTION[name]}" "${PLACE[@]}" --format="value($field)"
}

verb_setup() {
    run git -C "$ROOT" archive --format=tar.gz --output="$PACKAGE" HEAD
    run "${RESOURCE[@]}" scp "$PACKAGE" "${OPTION[name]}:deberta_jax.tar.gz" "${PLACE[@]}" "${EVERYWHERE[@]}"
    on_hosts "mkdir -p deberta_jax && tar -xzf deberta_jax.tar.gz -C deberta_jax &&" \
        "bash deberta_jax/launch/tpu_host.sh setup${OPTION[bucket]:+ $(quoted --bucket="${OPTION[bucket]}")}"
}

verb_train() {
    on_hosts "bash deberta_jax/launch/tpu_host.sh train" \
        "$(quoted --chip="$GENERATION" --slices="$SLICES" --config="${OPTION[config]}" \
            --workdir="${OPTION[workdir]}" "${OVERRIDES[@]}")"
}

verb_logs() {
    local host=(--worker="${OPTION[worker]:-0}")
    if [ -z "${OPTION[direct]:-}" ]; then host=(--node=0 "${host[@]}"); fi
    EVERYWHERE=("${host[@]}")
    on_hosts "bash deberta_jax/launch/tpu_host.sh logs"
}

verb_stop() {
    on_hosts "bash deberta_jax/launch/tpu_host.sh stop"
}

verb_resume() {
    local state=preempted
    # A resource that nobody knows is gone; one that is there is not thrown away.
    if [ -z "${OPTION[dry-run]:-}" ]; then state="$(verb_status || true)"; fi
    case "$state" in
        ACTIVE | READY)
            echo "${OPTION[name]} is $state; starting the training on it again"
            verb_setup
            verb_train
            return
            ;;
        "") ;;
        *) verb_delete ;;
    esac
    verb_launch
}

verb_delete() {
    local force=(--force)
    if [ -n "${OPTION[direct]:-}" ]; then force=(); fi
    run "${RESOURCE[@]}" delete "${OPTION[name]}" "${PLACE[@]}" "${force[@]}" --quiet
}

on_hosts() {
    run "${RESOURCE[@]}" ssh "${OPTION[name]}" "${PLACE[@]}" "${EVERYWHERE[@]}" --command="$*"
}

main "$@"
