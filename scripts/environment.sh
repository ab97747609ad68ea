# Sourced by demo.sh and test.sh: makes .venv in the repository once, with all that demo, benchmarks and tests need, from
# PyPI. In it `lemica` is this checkout, and `hyvideo` is upstream's package with this checkout's kit linked into it:
# .venv/HunyuanVideo-1.5 is that tree, .venv/upstream holds upstream's package as released.
# PYTHON chooses the interpreter (3.10 to 3.12). pip's own settings apply: on a machine without a GPU,
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu saves the CUDA libraries that PyPI's torch brings along.
REPOSITORY="$(dirname "$(dirname "$(realpath "${BASH_SOURCE[0]}")")")"
VENV="$REPOSITORY/.venv"
TREE="$VENV/HunyuanVideo-1.5"
NEWER_DIFFUSERS="$VENV/diffusers"
TORCH="torch==2.13.0"
UPSTREAM="hyvideo-fork==20260412"
ANGELSLIM="angelslim==0.2.2"

make_environment() {
    local requirements=("$REPOSITORY/requirements.txt" "$REPOSITORY/requirements-test.txt")
    local wanted
    wanted="$(cat "${requirements[@]}" "$REPOSITORY/pyproject.toml" "$REPOSITORY/scripts/environment.sh" | sha256sum)"
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
        "$VENV/bin/pip" install --quiet --no-deps "$ANGELSLIM"
        "$VENV/bin/pip" install --quiet --no-deps --upgrade --target "$VENV/upstream" "$UPSTREAM"
        "$VENV/bin/pip" install --quiet --no-deps --editable "$REPOSITORY"
        make_tree
        echo "$wanted" >"$VENV/installed"
    fi
    export PATH="$VENV/bin:$PATH"
    # Without flash-attention upstream compiles its attention, which takes a C++ compiler and minutes on a CPU.
    command -v nvidia-smi >/dev/null || export TORCHDYNAMO_DISABLE=1
}

# A folder of packages that, on PYTHONPATH, stand before the environment's own. Made once per list of versions.
add_newer_diffusers() {
    local requirements="$REPOSITORY/requirements-diffusers.txt"
    local wanted
    wanted="$(sha256sum <"$requirements")"
    if [[ "$(cat "$NEWER_DIFFUSERS/installed" 2>/dev/null)" != "$wanted" ]]; then
        echo "Setting up $NEWER_DIFFUSERS ..." >&2
        rm -rf "$NEWER_DIFFUSERS.partial"
        "$VENV/bin/pip" install --quiet --no-deps --target "$NEWER_DIFFUSERS.partial" -r "$requirements"
        echo "$wanted" >"$NEWER_DIFFUSERS.partial/installed"
        rm -rf "$NEWER_DIFFUSERS"
        mv "$NEWER_DIFFUSERS.partial" "$NEWER_DIFFUSERS"
    fi
}

make_tree() {
    rm -rf "$TREE"
    mkdir "$TREE"
    cp -r "$VENV/upstream/hyvideo" "$TREE"
    ln -sf "$REPOSITORY/infer_state.py" "$TREE/hyvideo/commons/"
    ln -sf "$REPOSITORY/hunyuan_video_pipeline.py" "$TREE/hyvideo/pipelines/"
    ln -sf "$REPOSITORY/generate.py" "$TREE/"
    echo "$TREE" >"$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/hunyuanvideo.pth"
}
