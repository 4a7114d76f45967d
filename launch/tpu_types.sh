# shellcheck shell=bash disable=SC2034 # no launcher reads all of it
# Sourced by the launchers: the TPU types, named as in `deberta_jax.compile --topology`.
# cloud.google.com/tpu/docs/supported-tpu-configurations, cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus

GENERATIONS=(v4 v5e v5p v6e tpu7x)
# Where several shapes have one size, the one that Google Cloud makes when asked for that size.
CUBES="2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16"
SQUARES="1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16"
declare -A TOPOLOGIES=(
    [v4]="$CUBES"
    [v5e]="$SQUARES"
    [v5p]="$CUBES 16x16x16 16x16x24"
    [v6e]="$SQUARES"
    [tpu7x]="$CUBES"
)
# An accelerator type is this and a number: of chips, or of TensorCores where a chip has two.
declare -A PREFIX=([v4]=v4 [v5e]=v5litepod [v5p]=v5p [v6e]=v6e [tpu7x]=tpu7x)
declare -A COUNTED_A_CHIP=([v4]=2 [v5e]=1 [v5p]=2 [v6e]=1 [tpu7x]=2)
# cloud.google.com/tpu/docs/runtimes
declare -A RUNTIME=(
    [v4]=tpu-ubuntu2204-base
    [v5e]=v2-alpha-tpuv5-lite
    [v5p]=v2-alpha-tpuv5
    [v6e]=v2-alpha-tpuv6e
    [tpu7x]=v2-alpha-tpu7-ubuntu2404
)
declare -A GKE_ACCELERATOR=(
    [v4]=tpu-v4-podslice
    [v5e]=tpu-v5-lite-podslice
    [v5p]=tpu-v5p-slice
    [v6e]=tpu-v6e-slice
    [tpu7x]=tpu7x
)
# GKE's machines; a number of chips and "t" follow.
declare -A GKE_MACHINE=(
    [v4]=ct4p-hightpu-
    [v5e]=ct5lp-hightpu-
    [v5p]=ct5p-hightpu-
    [v6e]=ct6e-standard-
    [tpu7x]=tpu7x-standard-
)

# Sets GENERATION, TOPOLOGY, CHIPS, HOSTS, CHIPS_A_HOST and ACCELERATOR_TYPE from "v5e:4x4".
read_tpu() {
    local known="${GENERATIONS[*]}"
    GENERATION="${1%%:*}"
    TOPOLOGY="${1#*:}"
    [[ " $known " == *" $GENERATION "* ]] ||
        fail "--tpu=$1: no such TPU; known are ${known// /, }, as in v5e:4x4"
    [[ " ${TOPOLOGIES[$GENERATION]} " == *" $TOPOLOGY "* ]] ||
        fail "--tpu=$1: $GENERATION has the topologies ${TOPOLOGIES[$GENERATION]// /, }"
    CHIPS=$((${TOPOLOGY//x/*}))
    CHIPS_A_HOST=$((CHIPS < 4 ? CHIPS : 4))
    HOSTS=$((CHIPS / CHIPS_A_HOST))
    ACCELERATOR_TYPE="${PREFIX[$GENERATION]}-$((CHIPS * COUNTED_A_CHIP[$GENERATION]))"
}
