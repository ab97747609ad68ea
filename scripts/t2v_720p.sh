#!/usr/bin/env bash
# Text to video at 720p with LeMiCa, run in a HunyuanVideo-1.5 checkout with the kit installed. Environment:
#   PROMPT, LEMICA_STEP (25), N_INFERENCE_GPU (4), MODEL_PATH (./ckpts), OUTPUT_PATH (./outputs/output.mp4),
#   SEED, ASPECT_RATIO, REWRITE and T2V_REWRITE_BASE_URL, T2V_REWRITE_MODEL_NAME, HUNYUANVIDEO_DIR (.)
set -euo pipefail
export PROMPT="${PROMPT:-A girl holding a paper cup walks through a sunlit street market and smiles at the camera.}"
export IMAGE_PATH=none
exec "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/run_720p.sh" "$@"
