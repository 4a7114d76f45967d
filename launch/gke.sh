#!/usr/bin/env bash
# Trains on TPUs of a GKE cluster, as a JobSet: bash launch/gke.sh VERB --OPTION=VALUE...
#
#   image    build and push the image (--image)
#   nodes    a node pool for each slice, in --cluster
#   create   the JobSet; it restarts all hosts when one fails or is preempted
#   status   of the JobSet and its pods
#   logs     follow the output of host 0 of slice 0 (or of --slice=I --worker=J)
#   delete   the JobSet
#
#   --name=NAME
#   --tpu=TYPE             generation and topology, such as v5e:4x4 or v5p:4x4x4
#   --slices=N             that many of them, over the data-center network
#   --image=IMAGE          such as us-docker.pkg.dev/PROJECT/REPOSITORY/deberta_jax
#   --config=RECIPE        its name or file, such as deberta_v1_base
#   --workdir=gs://BUCKET/DIR
#                          of the run; in a bucket, so that it outlives the pods
#   --bucket=BUCKET        mount this bucket at /gcs in every pod, for --workdir=/gcs/DIR
#   --config.a.b=c         overrides, as for deberta_jax.train
#   --service-account=A    Kubernetes service account that may write to the bucket (default: default)
#   --spot                 on preemptible nodes
#   --queue=QUEUE          of Kueue, where the cluster has it
#   --max-restarts=N       then the JobSet has failed (default: 100)
#   --xpk                  create, status and delete by xpk instead of kubectl
#   --cluster=C --zone=Z [--region=R] [--project=P]
#                          for nodes and --xpk, the region where the cluster is a regional one;
#                          kubectl uses its current context
#   --dry-run              print the commands and the manifest, run nothing

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$ROOT/launch/tpu_types.sh"
source "$ROOT/launch/xla_flags.sh"
source "$ROOT/launch/jobset.sh"

main() {
    local verb="${1:---help}"
    if [ "$verb" = --help ]; then usage "$0" && exit; fi
    declare -F "verb_$verb" > /dev/null ||
        fail "'$verb' is no verb; verbs are image, nodes, create, status, logs, delete"
    local valued="name tpu slices slice worker image bucket config workdir service-account queue"
    read_options "$0" "$valued max-restarts cluster region zone project" "spot xpk" "${@:2}"
    need_positive slices max-restarts
    SLICES="${OPTION[slices]:-1}"
    MAX_RESTARTS="${OPTION[max-restarts]:-100}"
    if [ "$verb" = nodes ] || [ -n "${OPTION[xpk]:-}" ]; then
        need cluster zone
        PLACE=(--cluster="${OPTION[cluster]}" --zone="${OPTION[zone]}")
        if [ "$verb" = nodes ] && [ -n "${OPTION[region]:-}" ]; then PLACE[1]="--region=${OPTION[region]}"; fi
        if [ -n "${OPTION[project]:-}" ]; then PLACE+=(--project="${OPTION[project]}"); fi
    fi
    "verb_$verb"
}

verb_image() {
    need image
    run docker build --platform=linux/amd64 --file="$ROOT/launch/Dockerfile" --tag="${OPTION[image]}" "$ROOT"
    run docker push "${OPTION[image]}"
}

verb_nodes() {
    local slice pool
    need_name
    need tpu
    read_tpu "${OPTION[tpu]}"
    [ "$GENERATION" != tpu7x ] ||
        fail "tpu7x node pools need a workload policy: make the cluster by xpk cluster create --tpu-type=$ACCELERATOR_TYPE"
    for ((slice = 0; slice < SLICES; slice++)); do
        pool=(gcloud container node-pools create "${OPTION[name]}-$slice" "${PLACE[@]}")
        pool+=(--node-locations="${OPTION[zone]}" --num-nodes="$HOSTS")
        pool+=(--machine-type="${GKE_MACHINE[$GENERATION]}${CHIPS_A_HOST}t")
        # The topology of a single-host slice follows from its machine type.
        if [ "$HOSTS" -gt 1 ]; then pool+=(--tpu-topology="$TOPOLOGY"); fi
        if [ -n "${OPTION[spot]:-}" ]; then pool+=(--spot); fi
        run "${pool[@]}"
    done
}

verb_create() {
    need_name
    need tpu image
    read_tpu "${OPTION[tpu]}"
    need_training
    need_shared_workdir
    if [ -n "${OPTION[xpk]:-}" ]; then
        # Status 2 is a user error, which a restart cannot fix. xpk restarts on 42 and 127-255.
        local storage=()
        if [ -n "${OPTION[bucket]:-}" ]; then storage=(--storage="${OPTION[bucket]}"); fi
        run xpk workload create "${PLACE[@]}" --workload="${OPTION[name]}" \
            --tpu-type="$ACCELERATOR_TYPE" --num-slices="$SLICES" --docker-image="${OPTION[image]}" \
            "${storage[@]}" --max-restarts="$MAX_RESTARTS" --restart-on-exit-codes=1 \
            --env="LIBTPU_INIT_ARGS=$(compiler_flags "$GENERATION" "$SLICES")" \
            --env="JAX_COMPILATION_CACHE_DIR=$(compilation_cache "${OPTION[workdir]}")" \
            --command="exec $(quoted python "${TRAIN[@]}")"
    else
        run_with_input "$(jobset)" kubectl apply --filename=-
    fi
}

verb_status() {
    need_name
    if [ -n "${OPTION[xpk]:-}" ]; then
        run xpk workload list "${PLACE[@]}" --filter-by-job="${OPTION[name]}"
    else
        run kubectl get jobset "${OPTION[name]}"
        run kubectl get pods --selector="jobset.sigs.k8s.io/jobset-name=${OPTION[name]}"
    fi
}

# xpk's workloads are JobSets too.
verb_logs() {
    local label=jobset.sigs.k8s.io pod
    need_name
    pod="$label/jobset-name=${OPTION[name]},$label/job-index=${OPTION[slice]:-0}"
    pod+=",batch.kubernetes.io/job-completion-index=${OPTION[worker]:-0}"
    run kubectl logs --follow --tail=100 --selector="$pod"
}

verb_delete() {
    need_name
    if [ -n "${OPTION[xpk]:-}" ]; then
        run xpk workload delete "${PLACE[@]}" --workload="${OPTION[name]}"
    else
        run kubectl delete jobset "${OPTION[name]}"
    fi
}

main "$@"
