#!/usr/bin/env bash
# Everything that needs a GPU, in one call of nine minutes, on a node without network:
#
#   bash bench/gpu.sh [WHEELS [OUT [BENCH ...]]]
#
# WHEELS  folder of wheels that the node lacks (bench/README.md lists them); one that was cut to be carried
#         lies there as NAME.whl.part-aa, NAME.whl.part-ab, ...
# OUT     where gpu.tar.gz goes: logs, rows for bench/results.jsonl, what the node is. Default: runs/gpu
# BENCH   those to run. Default: all
#
# First whether it is right, then how fast: where a test marked gpu fails, nothing is timed.
# DEVICE=cpu goes the same way without a GPU; SECONDS_IN_ALL=540 is the time for all of it.
set -uo pipefail
cd "$(dirname "$0")/.."

export wheels="${1:-}" out="${2:-runs/gpu}" device="${DEVICE:-cuda}" python="${PYTHON:-python3}"
deadline=$((SECONDS + ${SECONDS_IN_ALL:-540}))
place="$out/gpu"
benches=("${@:3}")
status=0
rm -rf "$place" "$out/site" "$out/joined"
mkdir -p "$place" "$out/site" "$out/joined"
export PYTHONPATH="$PWD:$PWD/kernels:$(realpath "$out/site")${PYTHONPATH:+:$PYTHONPATH}"

install() {
  local file found=()
  for file in "$wheels"/*.whl.part-aa; do
    [ ! -e "$file" ] || cat "${file%aa}"* >"$out/joined/$(basename "${file%.part-aa}")" || return
  done
  for file in "$wheels"/*.whl "$out"/joined/*.whl; do
    [ ! -e "$file" ] || found+=("$file")
  done
  [ "${#found[@]}" -gt 0 ] || { echo "$wheels: no wheels"; return 1; }
  "$python" -m pip install --no-index --no-deps --target "$out/site" "${found[@]}"
}

describe() {
  nvidia-smi || [ "$device" = cpu ] || return
  "$python" -c '
import os, torch
from hard_fast.runtime.environment import versions
print(versions(torch.device(os.environ["device"])))'
}
export -f install describe

# step NAME SECONDS COMMAND...: run it, with a log of its own, and say what came of it.
step() {
  local name="$1" most="$2" left=$((deadline - SECONDS)) since="$SECONDS" code=0
  shift 2
  if [ "$left" -lt 5 ]; then
    code=124
  else
    timeout --kill-after=10 "$((left < most ? left : most))" \
      bash -c '"$@"' - "$@" >"$place/$name.log" 2>&1 || code=$?
  fi
  echo "$name: exit code $code after $((SECONDS - since)) s" | tee -a "$place/steps.txt"
  return "$code"
}

everything() {
  [ -z "$wheels" ] || step install 150 install || return
  step describe 60 describe || return
  step tests 240 "$python" -m pytest $(grep -rl "mark.gpu" tests) -m gpu --durations=10 || return
  step bench 540 "$python" -m bench "${benches[@]}" --device "$device" --rows "$place/results.jsonl" \
    --seconds "$((deadline - SECONDS - 10))"
}

everything || status=1
tar -czf "$out/gpu.tar.gz" -C "$out" gpu
tail -n 60 "$place"/*.log
cat "$place/steps.txt"
echo "$out/gpu.tar.gz"
exit "$status"
