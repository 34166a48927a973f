#!/usr/bin/env bash
# PyTorch 2.13.0's profiler writes to stderr, whatever the log level is but for one.
#
# Seen 2026-11-30 with torch 2.13.0 (CPU), Python 3.11, Linux x86-64: every profile writes two lines to stderr,
#   USDT:2026-11-30 08:33:36 3465:3465 SyncActivityProfilerHandler.cpp:52] profiler_start
#   USDT:2026-11-30 08:33:36 3465:3465 SyncActivityProfilerHandler.cpp:59] profiler_stop
# KINETO_LOG_LEVEL silences them at 6, not at 0 to 5; it may be set after torch is imported, before the first profile. A
# program whose stderr is compared, or is all that a user sees, has to expect them.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy
cat > "$folder/one_profile.py" << 'PYTHON'
import os
import sys

import torch

if len(sys.argv) > 1:
    os.environ["KINETO_LOG_LEVEL"] = sys.argv[1]
with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
    torch.ones(3) + 1
PYTHON
lines() { grep -c '^USDT:.*profiler_st' "$folder/stderr" || true; }
for level in 0 1 2 3 4 5 6; do
  KINETO_LOG_LEVEL=$level "$folder/venv/bin/python" "$folder/one_profile.py" 2> "$folder/stderr"
  expected=2; [ "$level" -lt 6 ] || expected=0
  echo "KINETO_LOG_LEVEL=$level: $(lines) lines on stderr"
  [ "$(lines)" = "$expected" ] || { echo "changed: expected $expected"; exit 1; }
done
"$folder/venv/bin/python" "$folder/one_profile.py" 6 2> "$folder/stderr"
echo "set to 6 after the import: $(lines) lines"
[ "$(lines)" = 0 ] || { echo "changed: expected 0"; exit 1; }
echo "as seen"
