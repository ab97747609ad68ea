#!/usr/bin/env bash
# The common part of t2v_720p.sh and i2v_720p.sh, which set PROMPT and IMAGE_PATH: run generate.py with LeMiCa at 720p.
# More arguments of generate.py may follow on the command line and override the ones below.
set -euo pipefail

cd "${HUNYUANVIDEO_DIR:-.}"
if ! [[ -f generate.py && -f hyvideo/pipelines/hunyuan_video_pipeline.py ]]; then
    echo "$PWD is not a HunyuanVideo-1.5 checkout: go into one, or set HUNYUANVIDEO_DIR to its folder" >&2
    exit 2
fi

# The services that rewrite prompts, used with REWRITE=true only.
export T2V_REWRITE_BASE_URL="${T2V_REWRITE_BASE_URL:-}" T2V_REWRITE_MODEL_NAME="${T2V_REWRITE_MODEL_NAME:-}"
export I2V_REWRITE_BASE_URL="${I2V_REWRITE_BASE_URL:-}" I2V_REWRITE_MODEL_NAME="${I2V_REWRITE_MODEL_NAME:-}"

# Not as a flag, so that another --cache_type may follow.
export LEMICA_STEP="${LEMICA_STEP:-25}"

exec torchrun --nproc_per_node="${N_INFERENCE_GPU:-4}" generate.py \
    --prompt "$PROMPT" \
    --image_path "$IMAGE_PATH" \
    --resolution "${RESOLUTION:-720p}" \
    --aspect_ratio "${ASPECT_RATIO:-16:9}" \
    --seed "${SEED:-1}" \
    --rewrite "${REWRITE:-false}" \
    --cfg_distilled "${CFG_DISTILLED:-false}" \
    --enable_step_distill false \
    --sparse_attn "${SPARSE_ATTN:-false}" \
    --use_sageattn "${SAGE_ATTN:-false}" \
    --enable_cache "${ENABLE_CACHE:-true}" \
    --cache_type lemica \
    --overlap_group_offloading "${OVERLAP_GROUP_OFFLOADING:-true}" \
    --sr "${ENABLE_SR:-false}" \
    --save_pre_sr_video \
    --output_path "${OUTPUT_PATH:-./outputs/output.mp4}" \
    --model_path "${MODEL_PATH:-./ckpts}" \
    "$@"
