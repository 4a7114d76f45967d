# Sourced by the other scripts: makes .venv and installs the project with the extras in $1.
# PYTHON chooses the interpreter (3.11 or newer) that .venv is made with.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$ROOT"

install_environment() {
    local extras="$1" python="${PYTHON:-python3}" stamp=".venv/.installed" wanted
    if [ ! -x .venv/bin/python ]; then
        if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "error: $python is not Python 3.11 or newer; set PYTHON to one that is" >&2
            exit 2
        fi
        echo "making .venv with $("$python" --version)"
        "$python" -m venv .venv
    fi
    # What is installed already is kept until setup.py changes or another extra is asked for.
    touch "$stamp"
    for extra in ${extras//,/ }; do
        wanted="$(cksum < setup.py) $extra"
        if ! grep -qxF "$wanted" "$stamp"; then
            echo "installing deberta_jax[$extras] into .venv"
            .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$extras]"
            for done in ${extras//,/ }; do echo "$(cksum < setup.py) $done" >> "$stamp"; done
            break
        fi
    done
}
