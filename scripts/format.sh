#!/usr/bin/env bash
# Formats all C sources in place; with --check only says which ones are not formatted, and fails.

set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/sources.sh

if ! command -v clang-format >/dev/null; then
    echo "format: clang-format is not installed: run scripts/setup.sh --dev" >&2
    exit 1
fi

case ${1-} in
"") c_sources 'c|h' | xargs clang-format -i ;;
--check)
    if ! c_sources 'c|h' | xargs clang-format --dry-run -Werror; then
        echo "format: the files named above are not formatted: run 'make format'" >&2
        exit 1
    fi
    echo "format: all sources are formatted"
    ;;
*)
    echo "usage: scripts/format.sh [--check]" >&2
    exit 2
    ;;
esac
