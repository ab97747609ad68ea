#!/usr/bin/env bash
# Show what the kit does, on any machine: make a HunyuanVideo-1.5 tree from PyPI's hyvideo-fork, install the kit into
# it, plan masks for the small model of assets/demo_checkpoint, and let it draw one video uncached and with 25, 20, 15
# and 10 of 50 steps computed, on two ranks. Ends with a page on which all videos play in step.
# Environment: DEMO_DIR (./demo_run, replaced), PROMPT (words: see demo/data.py), SEED, PYTHON.
set -euo pipefail
source "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/environment.sh"
make_environment

DEMO_DIR="$(realpath -m "${DEMO_DIR:-$REPOSITORY/demo_run}")"
DEMO_TREE="$DEMO_DIR/HunyuanVideo-1.5"
RUNS="$DEMO_DIR/runs"
# On the CPU, on any machine: that is where its masks were calibrated.
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= TORCHDYNAMO_DISABLE=1

if [[ -e "$DEMO_DIR" && ! -e "$DEMO_DIR/.demo" ]]; then
    echo "$DEMO_DIR exists and was not made by the demo: set DEMO_DIR to another folder" >&2
    exit 2
fi
rm -rf "$DEMO_DIR"
mkdir -p "$DEMO_TREE" "$RUNS"
touch "$DEMO_DIR/.demo"

echo "== A HunyuanVideo-1.5 tree with the kit in it: $DEMO_TREE"
cp -r "$VENV/upstream/hyvideo" "$DEMO_TREE"
"$REPOSITORY/scripts/install.sh" "$DEMO_TREE"

echo "== Masks, planned on the model's error graph"
lemica plan "$REPOSITORY/assets/calibrations/t2v_50.json" --budget 25 20 15 10 -o "$DEMO_DIR/b{budget}.json"

generate() { # VIDEO [ARGUMENT...]
    local log="${1%.mp4}.log"
    (cd "$DEMO_TREE" && torchrun --standalone --nproc_per_node=2 generate.py \
        --prompt "${PROMPT:-a red circle shrinks over bricks}" --image_path none --resolution 480p \
        --aspect_ratio 1:1 --video_length 9 --seed "${SEED:-1}" --rewrite false --sr false --save_lossless true \
        --model_path "$REPOSITORY/assets/demo_checkpoint" --output_path "$@" >"$log" 2>&1) ||
        { tail -n 20 "$log" >&2; exit 1; }
}
echo "== A short run that does not count, so that the first one that does finds all files in memory"
generate "$DEMO_DIR/warm_up.mp4" --num_inference_steps 4
echo "== uncached"
generate "$RUNS/uncached.mp4"
for budget in 25 20 15 10; do
    echo "== b$budget"
    generate "$RUNS/b$budget.mp4" --enable_cache true --cache_type lemica --lemica_mask "$DEMO_DIR/b$budget.json"
done

echo
lemica report "$RUNS" -o "$DEMO_DIR/report.html"
