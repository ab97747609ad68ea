# Sourced by demo.sh and test.sh: makes .venv in the repository once, with all that demo and tests need, from PyPI.
# PYTHON chooses the interpreter (3.10 to 3.12). pip's own settings apply: on a machine without a GPU,
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu saves the CUDA libraries that PyPI's torch brings along.
REPOSITORY="$(dirname "$(dirname "$(realpath "${BASH_SOURCE[0]}")")")"
VENV="$REPOSITORY/.venv"
TORCH="torch==2.13.0"
UPSTREAM="hyvideo-fork==20260412 angelslim==0.2.2"

make_environment() {
    local requirements=("$REPOSITORY/requirements.txt" "$REPOSITORY/requirements-test.txt")
    local wanted
    wanted="$(cat "${requirements[@]}" <(echo "$TORCH $UPSTREAM") | sha256sum)"
    if [[ "$(cat "$VENV/installed" 2>/dev/null)" != "$wanted" ]]; then
        echo "Setting up $VENV ..." >&2
        "${PYTHON:-python3}" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' || {
            echo "Python 3.10 to 3.12 is needed: set PYTHON to one, for example PYTHON=python3.11" >&2
            exit 2
        }
        "${PYTHON:-python3}" -m venv "$VENV"
        # torch first and pinned: another package would pull in the newest one.
        "$VENV/bin/pip" install --quiet "$TORCH"
        "$VENV/bin/pip" install --quiet "${requirements[@]/#/-r}"
        # Upstream and angelslim declare several GB of dependencies that nothing here needs.
        "$VENV/bin/pip" install --quiet --no-deps $UPSTREAM
        echo "$wanted" >"$VENV/installed"
    fi
    export PATH="$VENV/bin:$PATH"
    # Without flash-attention upstream compiles its attention, which takes a C++ compiler and minutes on a CPU.
    command -v nvidia-smi >/dev/null || export TORCHDYNAMO_DISABLE=1
}
