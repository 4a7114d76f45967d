# shellcheck shell=bash
# Sourced by the launchers: options, one-line errors, and --dry-run.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# Where --bucket is mounted on every host, for those who want a mount; gs:// needs none.
SHARED=/gcs
declare -A OPTION=()
OVERRIDES=()

fail() {
    echo "error: $*" >&2
    exit 2
}

# The comment at the head of a script is its help.
usage() {
    sed -n '2,/^$/s/^# \{0,1\}//p' "$1"
}

# read_options SCRIPT "options with a value" "options without one" ARGUMENTS...
# fills OPTION, and OVERRIDES with every --config.a.b=c.
read_options() {
    local script="$1" valued="$2" plain="$3 dry-run" argument name
    shift 3
    for argument in "$@"; do
        name="${argument#--}"
        name="${name%%=*}"
        case "$argument" in
            --help)
                usage "$script"
                exit 0
                ;;
            --config.*=*) OVERRIDES+=("$argument") ;;
            --*=*)
                [[ " $valued " == *" $name "* ]] || fail "--$name takes no value or is no option; --help lists them"
                OPTION[$name]="${argument#*=}"
                ;;
            --*)
                [[ " $valued " != *" $name "* ]] || fail "--$name needs a value: --$name=..."
                [[ " $plain " == *" $name "* ]] || fail "--$name is no option; --help lists them"
                OPTION[$name]=yes
                ;;
            *) fail "'$argument' is no option; options look like --name=value" ;;
        esac
    done
}

need() {
    local name
    for name in "$@"; do
        [ -n "${OPTION[$name]:-}" ] || fail "--$name is missing; --help says what it is"
    done
}

need_positive() {
    local name
    for name in "$@"; do
        [[ "${OPTION[$name]:-1}" =~ ^[1-9][0-9]*$ ]] || fail "--$name=${OPTION[$name]} must be a whole number above 0"
    done
}

# A name that is valid for Google Cloud and for Kubernetes.
need_name() {
    need name
    [[ "${OPTION[name]}" =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
        fail "--name=${OPTION[name]} must be at most 40 lower-case letters, digits and hyphens, a letter first"
}

# Sets TRAIN: the arguments of python that start the run or continue it.
need_training() {
    need config workdir
    # A file or a name; a size may follow it: sweeps/ablation:tiny.
    local recipe="${OPTION[config]%%:*}"
    [ -f "$ROOT/$recipe" ] || [ -f "$ROOT/configs/$recipe.py" ] ||
        fail "--config=${OPTION[config]}: the checkout has no such recipe; it has $(cd "$ROOT" && echo configs/*.py)"
    TRAIN=(-m deberta_jax.train --config="${OPTION[config]}" --workdir="${OPTION[workdir]}")
    TRAIN+=(--distributed=auto "${OVERRIDES[@]}")
}

need_shared_workdir() {
    need workdir
    is_url "${OPTION[workdir]}" ||
        { [ -n "${OPTION[bucket]:-}" ] && [[ "${OPTION[workdir]}" == "$SHARED"/?* ]]; } ||
        fail "--workdir=${OPTION[workdir]} must be on the bucket, as gs://BUCKET/DIR (or $SHARED/DIR with --bucket): hosts come and go"
}

is_url() {
    [[ "$1" =~ ^(gs|s3)://[^/]+/. ]]
}

# Where compiled programs are kept for the next start, and for all hosts: beside the runs.
compilation_cache() {
    local workdir="${1%/}"
    echo "${workdir%/*}/compiled"
}

# The words as one line of shell, quoted where needed.
quoted() {
    local word line=()
    for word in "$@"; do
        [[ "$word" =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'${word//\'/"'\''"}'"
        line+=("$word")
    done
    echo "${line[*]}"
}

# Runs a command, or prints it under --dry-run.
run() {
    if [ -n "${OPTION[dry-run]:-}" ]; then quoted "$@"; else "$@"; fi
}

# The same for a command that reads the text in $1.
run_with_input() {
    local text="$1"
    shift
    if [ -n "${OPTION[dry-run]:-}" ]; then
        printf "%s <<'EOF'\n%s\nEOF\n" "$(quoted "$@")" "$text"
    else
        "$@" <<< "$text"
    fi
}
