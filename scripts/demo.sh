#!/usr/bin/env bash
# Show what the kit does, on any machine: make a HunyuanVideo-1.5 tree from PyPI's hyvideo-fork, install the kit into
# it, and let the small model of assets/demo_checkpoint draw one video uncached and with 25, 20, 15 and 10 of 50 steps
# computed, on two ranks, by the masks and fitted forecasts that were planned for it. Ends with a page on which all
# videos play in step.
# Environment: DEMO_DIR (./demo_run, replaced), PROMPT (words: see scripts/demo_data.py), SEED, PYTHON.
set -euo pipefail
source "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/environment.sh"
make_environment

DEMO_DIR="$(realpath -m "${DEMO_DIR:-$REPOSITORY/demo_run}")"
TREE="$DEMO_DIR/HunyuanVideo-1.5"
RUNS="$DEMO_DIR/runs"
export OMP_NUM_THREADS=1

if [[ -e "$DEMO_DIR" && ! -e "$DEMO_DIR/.demo" ]]; then
    echo "$DEMO_DIR exists and was not made by the demo: set DEMO_DIR to another folder" >&2
    exit 2
fi
rm -rf "$DEMO_DIR"
mkdir -p "$TREE" "$RUNS"
touch "$DEMO_DIR/.demo"

echo "== A HunyuanVideo-1.5 tree with the kit in it: $TREE"
cp -r "$(python -c 'import importlib.metadata as m; print(m.distribution("hyvideo-fork").locate_file("hyvideo"))')" "$TREE"
"$REPOSITORY/scripts/install.sh" "$TREE"

generate() { # NAME [ARGUMENT...]
    echo "== $1"
    (cd "$TREE" && torchrun --standalone --nproc_per_node=2 generate.py \
        --prompt "${PROMPT:-a red circle shrinks over bricks}" --image_path none --resolution 480p \
        --aspect_ratio 1:1 --video_length 9 --seed "${SEED:-1}" --sr false --save_lossless true \
        --model_path "$REPOSITORY/assets/demo_checkpoint" --output_path "$RUNS/$1.mp4" "${@:2}" \
        >"$RUNS/$1.log" 2>&1) ||
        { tail -n 20 "$RUNS/$1.log" >&2; exit 1; }
}
generate uncached
for budget in 25 20 15 10; do
    generate "b$budget" --enable_cache true --cache_type lemica \
        --lemica_mask "$REPOSITORY/assets/demo_masks/minimax_fitted2_t2v_50_b$budget.json"
done

echo
cd "$REPOSITORY"
python -m lemica report "$RUNS" -o "$DEMO_DIR/report.html"
