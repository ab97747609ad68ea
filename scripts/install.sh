#!/usr/bin/env bash
# Puts the kit into a HunyuanVideo-1.5 tree, or takes it out: ./scripts/install.sh TARGET [--force] [--uninstall]
exec "${PYTHON:-python3}" "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/install.py" "$@"
