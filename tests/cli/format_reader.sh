#!/usr/bin/env bash
# The Python reader of docs/format.md is the one in tools/, and it decodes the golden file to the
# same bits as the library. Needs python3 with numpy; skipped where they are missing.

set -euo pipefail

python3 -c 'import numpy' 2>/dev/null || {
    echo "skipped: no python3 with numpy"
    exit 77
}

python3 - "$SOURCE_DIR/docs/format.md" "$SOURCE_DIR/tools/read_pdvm.py" <<'PYTHON'
import sys

text, tool = (open(path, encoding="utf-8").read() for path in sys.argv[1:])
quoted = text.split("```python\n")[1].split("```")[0]
reader = tool.split("# [reader]\n")[1].split("# [/reader]")[0]
if quoted.strip() != reader.strip():
    sys.exit("docs/format.md does not quote the reader of tools/read_pdvm.py")
PYTHON

golden=$SOURCE_DIR/tests/golden/format
python3 "$SOURCE_DIR/tools/read_pdvm.py" "$golden/v1.pdvm" \
    --compare "$golden/v1.expected.safetensors" >log || {
    cat log
    exit 1
}
# Every combination of index and value coding with and without groups.
test "$(grep -c ' same$' log)" -eq 48
