#!/usr/bin/env bash
# Image to video at 720p with LeMiCa, run in a HunyuanVideo-1.5 checkout with the kit installed. Environment:
#   IMAGE_PATH (required), PROMPT, LEMICA_STEP (25), N_INFERENCE_GPU (4), MODEL_PATH (./ckpts), OUTPUT_PATH,
#   SEED, REWRITE and I2V_REWRITE_BASE_URL, I2V_REWRITE_MODEL_NAME, HUNYUANVIDEO_DIR (.)
set -euo pipefail
export IMAGE_PATH="${IMAGE_PATH:?set IMAGE_PATH to the first frame, for example IMAGE_PATH=./first.png}"
IMAGE_PATH="$(realpath "$IMAGE_PATH")"
export PROMPT="${PROMPT:-The scene comes to life with slow, natural motion.}"
exec "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/run_720p.sh" "$@"
