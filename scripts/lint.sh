#!/usr/bin/env bash
# Static analysis: clang-tidy with .clang-tidy, cppcheck, and shellcheck for the scripts. Given files,
# runs clang-tidy on them only.
# Needs a configured build/clang (make lint does that) for the compile commands.

set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/sources.sh

build=build/clang
for tool in clang-tidy cppcheck shellcheck; do
    if ! command -v "$tool" >/dev/null; then
        echo "lint: $tool is not installed: run scripts/setup.sh --dev" >&2
        exit 1
    fi
done
if [ ! -e "$build/compile_commands.json" ]; then
    echo "lint: $build is not configured: run 'make lint'" >&2
    exit 1
fi

# Only what the compile commands know: files for another architecture cannot be analysed here.
if [ $# -gt 0 ]; then
    files=$(printf '%s\n' "$@")
else
    files=$(c_sources c | while read -r file; do
        if grep -qF "\"$PWD/$file\"" "$build/compile_commands.json"; then echo "$file"; fi
    done)
fi

failed=0
echo "lint: clang-tidy, $(echo "$files" | wc -l | tr -d ' ') files"
echo "$files" | xargs -P "$(processors)" -n 1 clang-tidy -p "$build" --quiet \
    --warnings-as-errors='*' 2> >(grep -v 'warnings\{0,1\} generated\.$' >&2) || failed=1

if [ $# -eq 0 ]; then
    # Without the tests, whose failed assertions it takes for returning, and without leaks, which
    # clang-tidy and LeakSanitizer see better: they follow a pointer to where it is kept.
    echo "lint: cppcheck"
    cppcheck --quiet --project="$build/compile_commands.json" -i tests -j "$(processors)" \
        --enable=warning,portability --inline-suppr --error-exitcode=1 \
        --suppress=missingIncludeSystem --suppress=memleak || failed=1

    echo "lint: shellcheck"
    find . -path './build*' -prune -o -type f \( -name '*.sh' -o -path ./.ci/run -o -name '*.bash' \) \
        -exec shellcheck --shell=bash --severity=warning {} + || failed=1
fi

if [ "$failed" = 0 ]; then
    echo "lint: nothing found"
else
    echo "lint: see the findings above" >&2
fi
exit "$failed"
