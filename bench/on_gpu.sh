#!/usr/bin/env bash
# What only a GPU can show, in the order in which it must hold, within ten minutes of one call.
#
#   bench/on_gpu.sh [PYTHON]        first what is right, then tiles, then how fast
#
# Records go to bench/records with the name of the device; everything said goes to the terminal.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
part() { # SECONDS WORDS...: one part, which may fail or run out of time without stopping the rest
  local seconds=$1
  shift
  echo "== $*"
  timeout "$seconds" "$@" || echo "== ended with $?: $*"
}
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader || exit 1
part 150 "$python" -m pytest -q -x -m gpu tests
part 90 "$python" -m bench tiles --sizes air
part 60 "$python" -m bench workloads --device cuda --size air --seconds 5
part 90 "$python" -m bench workloads --device cuda --size air --kernels triton --accuracy high --seconds 5
part 60 "$python" -m bench workloads --device cuda --size air --kernels triton --accuracy high --compile --only a b c --seconds 4
part 60 "$python" -m bench steps --device cuda --size air --kernels triton --accuracy high
part 60 "$python" -m bench workloads --device cuda --size air --kernels triton --accuracy fast --only a b d --seconds 5
part 60 "$python" -m bench workloads --device cuda --size neo --kernels triton --accuracy high --only a b c --seconds 5
part 80 "$python" -m bench overhead
