#!/usr/bin/env bash
# What tpu_vm.sh runs on every host of a TPU: bash launch/tpu_host.sh VERB --OPTION=VALUE...
#
#   setup [--bucket=BUCKET]  install into .venv; with a bucket, mount it at /gcs
#   train --chip=CHIP --slices=N --config=RECIPE --workdir=DIR [--config.a.b=c]
#   logs                     follow
#   stop                     stop training, with a checkpoint
#
# systemd restarts a process that dies, for instance because another host did; it continues from the
# last checkpoint. A process that ends with a user error (status 2) or has diverged (3) is not restarted.
#   --dry-run   print the commands, run nothing

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$ROOT/launch/xla_flags.sh"

UNIT=deberta_jax
UV="$HOME/.local/bin/uv"

main() {
    local verb="${1:---help}"
    if [ "$verb" = --help ]; then usage "$0" && exit; fi
    declare -F "verb_$verb" > /dev/null || fail "'$verb' is no verb; verbs are setup, train, logs, stop"
    read_options "$0" "bucket chip slices config workdir" "" "${@:2}"
    need_positive slices
    cd "$ROOT"
    "verb_$verb"
}

verb_setup() {
    if [ -n "${OPTION[bucket]:-}" ]; then mount_bucket; fi
    # The hosts' own Python may be older than 3.11.
    if [ ! -x "$UV" ]; then run sh -c 'curl -LsSf https://astral.sh/uv/install.sh | sh'; fi
    run "$UV" venv --allow-existing --python 3.12 .venv
    run "$UV" pip install --python .venv/bin/python -e '.[tpu,gcs]'
}

mount_bucket() {
    if ! command -v gcsfuse > /dev/null; then install_gcsfuse; fi
    if ! mountpoint --quiet "$SHARED"; then
        run sudo mkdir -p "$SHARED"
        run sudo chown "$(id -u)" "$SHARED"
        # A checkpoint is finished by renaming its directory.
        run gcsfuse --implicit-dirs --rename-dir-limit=1000000 "${OPTION[bucket]}" "$SHARED"
    fi
}

# cloud.google.com/storage/docs/cloud-storage-fuse/install
install_gcsfuse() {
    local key=/usr/share/keyrings/cloud.google.asc packages=https://packages.cloud.google.com/apt
    run sh -c "curl -fsS $packages/doc/apt-key.gpg | sudo tee $key > /dev/null"
    run sh -c "echo \"deb [signed-by=$key] $packages gcsfuse-\$(lsb_release -cs) main\" | sudo tee /etc/apt/sources.list.d/gcsfuse.list"
    run sudo apt-get update
    run sudo apt-get install --yes gcsfuse
}

verb_train() {
    need chip
    [ -n "${FLAGS[${OPTION[chip]}]:-}" ] || fail "--chip=${OPTION[chip]} is no chip; chips are v4, v5e, v5p, v6e, tpu7x"
    need_training
    verb_stop
    run sudo systemd-run --unit="$UNIT" --collect --uid="$(id -u)" --working-directory="$ROOT" \
        --property=Restart=on-failure --property=RestartSec=30 "--property=RestartPreventExitStatus=2 3" \
        --property=TimeoutStopSec=600 --property=LimitMEMLOCK=infinity \
        --setenv=PYTHONUNBUFFERED=1 \
        --setenv="JAX_COMPILATION_CACHE_DIR=$(compilation_cache "${OPTION[workdir]}")" \
        --setenv="LIBTPU_INIT_ARGS=$(compiler_flags "${OPTION[chip]}" "${OPTION[slices]:-1}")" \
        "$ROOT/.venv/bin/python" "${TRAIN[@]}"
}

verb_logs() {
    run sudo journalctl --unit="$UNIT" --output=cat --lines=100 --follow
}

# A missing unit counts as stopped.
verb_stop() {
    run sh -c "sudo systemctl stop $UNIT 2> /dev/null || true"
}

main "$@"
