#!/usr/bin/env bash
# Run the tests, in an environment that it makes itself; those of the pipelines once more under a newer diffusers.
# --all runs the slow ones, too; other arguments go to pytest: paths from tests/ on, and options (--ignore=PATH, with =).
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
run=(python -m pytest -n 2 --dist loadfile --no-loadscope-reorder)
# --lf in the one run must not forget what failed in the other.
newer=("${run[@]}" -o cache_dir=.pytest_cache/newer_diffusers)
pipelines=() chosen=
for argument in "$@"; do
    case "$argument" in
        tests | tests/) ;;
        tests/pipelines*) pipelines+=("$argument") chosen=yes ;;
        tests/*) chosen=yes ;;
        *) newer+=("$argument") ;;
    esac
done
[[ $chosen ]] || pipelines=(tests/pipelines)

trap 'exit 130' INT
status=0
"${run[@]}" "$@" || status=$?
if ((${#pipelines[@]})); then
    if python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        add_newer_diffusers
        echo "The pipelines once more, under a newer diffusers:"
        code=0
        PYTHONPATH="$NEWER_DIFFUSERS" "${newer[@]}" "${pipelines[@]}" || code=$?
        # 5: among the pipelines there is no test that the options choose.
        ((status || code == 5)) || status=$code
    else
        echo "Left out: the pipelines under a newer diffusers, which needs Python 3.11." >&2
    fi
fi
exit "$status"
