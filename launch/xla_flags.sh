#!/usr/bin/env bash
# Compiler flags that let collectives run beside computation, for each kind of chip:
#
#     eval "$(bash launch/xla_flags.sh CHIP [SLICES])"
#
# CHIP is v4, v5e, v5p, v6e, tpu7x or gpu. More than one slice adds the flags for the network
# between slices. Flags that the environment sets already come last, so they win.
# What each flag does: github.com/jax-ml/jax/blob/main/docs/xla_flags.md

ASYNC_FUSION="--xla_enable_async_all_gather=true \
--xla_tpu_enable_async_collective_fusion=true \
--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true \
--xla_tpu_enable_async_collective_fusion_multiple_steps=true \
--xla_tpu_overlap_compute_collective_tc=true"

declare -A FLAGS=(
    # github.com/AI-Hypercomputer/maxtext/blob/main/src/MaxText/configs/v4/22b.sh
    [v4]="--xla_enable_async_all_gather=true"
    # github.com/AI-Hypercomputer/maxtext/blob/main/src/MaxText/configs/v5e/llama2_70b.sh
    [v5e]="$ASYNC_FUSION"
    # github.com/AI-Hypercomputer/maxtext/blob/main/src/MaxText/configs/v5p/llama2_70b.sh
    [v5p]="$ASYNC_FUSION \
--xla_enable_async_collective_permute=true \
--xla_tpu_megacore_fusion_allow_ags=false \
--xla_tpu_enable_ag_backward_pipelining=true"
    # github.com/AI-Hypercomputer/maxtext/blob/main/src/MaxText/configs/trillium/llama2_7b_4096.sh
    [v6e]="$ASYNC_FUSION"
    # Its SparseCores do the collectives:
    # github.com/AI-Hypercomputer/tpu-recipes/tree/main/training/ironwood/llama3.1-70b/8k-bf16-tpu7x-4x4x4
    [tpu7x]="--xla_tpu_enable_sparse_core_collective_offload_all_reduce=true \
--xla_tpu_use_single_sparse_core_for_all_gather_offload=true"
    # docs.jax.dev/en/latest/gpu_performance_tips.html
    [gpu]="--xla_gpu_enable_latency_hiding_scheduler=true \
--xla_gpu_enable_pipelined_all_gather=true \
--xla_gpu_enable_pipelined_reduce_scatter=true \
--xla_gpu_enable_pipelined_all_reduce=true"
)
# github.com/AI-Hypercomputer/maxtext/blob/main/benchmarks/xla_flags_library.py: DATA_PARALLEL_OVERLAP
BETWEEN_SLICES="--xla_tpu_enable_data_parallel_all_reduce_opt=true \
--xla_tpu_data_parallel_opt_different_sized_ops=true"

# The environment variable in which the compiler of a chip looks.
flags_variable() {
    if [ "$1" = gpu ]; then echo XLA_FLAGS; else echo LIBTPU_INIT_ARGS; fi
}

# compiler_flags CHIP SLICES
compiler_flags() {
    local flags="${FLAGS[$1]}"
    if [ "$1" != gpu ] && [ "$2" -gt 1 ]; then flags+=" $BETWEEN_SLICES"; fi
    echo "$flags"
}

print_flags() {
    local chip="${1:-}" slices="${2:-1}" variable
    if [ "$chip" = --help ]; then
        sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
        return
    fi
    if [[ -z "$chip" || -z "${FLAGS[$chip]:-}" || ! "$slices" =~ ^[1-9][0-9]*$ ]]; then
        echo "error: '$*' is not CHIP [SLICES]; chips are v4, v5e, v5p, v6e, tpu7x, gpu" >&2
        exit 2
    fi
    variable="$(flags_variable "$chip")"
    echo "export $variable=\"$(compiler_flags "$chip" "$slices") \${$variable:-}\""
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    set -euo pipefail
    print_flags "$@"
fi
