#!/usr/bin/env bash
# Run the tests, in an environment that it makes itself. --all runs the slow ones, too; other arguments go to pytest.
set -euo pipefail
source "$(dirname "$(realpath "${BASH_SOURCE[0]}")")/environment.sh"
make_environment

# The report page is tested in a real browser; installed where that is ours to do, else those tests are skipped.
if ! command -v chromium chromium-browser google-chrome >/dev/null && [[ $EUID == 0 ]] && command -v apt-get >/dev/null; then
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver; } >/dev/null
fi

cd "$REPOSITORY"
ruff check .
ruff format --check .
# Files whole, because fixtures of a module are made once; the longest first, because the order is kept.
exec python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
