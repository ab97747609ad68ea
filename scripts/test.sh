#!/usr/bin/env bash
# Run the whole test suite, in an environment that it makes itself. Arguments go to pytest.
set -euo pipefail
source "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/environment.sh"
make_environment
cd "$REPOSITORY"
ruff check .
ruff format --check .
exec python -m pytest "$@"
