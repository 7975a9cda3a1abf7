#!/usr/bin/env bash
# Run the fast tests on Pythons other than that of .venv: the system's, and newer ones.
# tests/other_pythons.py decides what is skipped. Environments come from uv's cache, in seconds.
#
#   [PYTHONS="system 3.12 3.13"] tests/other_pythons.sh [UV]
set -euo pipefail
cd "$(dirname "$0")/.."
uv=${1:-}
if [ -z "$uv" ]; then
  echo "test-pythons: nothing was run, since uv is not installed (pip install uv)"
  exit 0
fi
marks="not ray and not slow and not end_to_end and not browser and not cluster and not gpu and not vllm"

# Print the path of a Python; nothing where there is none. pyenv's shims fail unless selected.
find_python() {
  if [ "$1" = system ]; then
    command -v /usr/bin/python3 || true
  else
    PYENV_VERSION=$(pyenv versions --bare 2> /dev/null | paste -sd:) UV_PYTHON_DOWNLOADS=never \
      "$uv" python find "$1" 2> /dev/null || true
  fi
}

version() { "$1" -c 'import platform; print(platform.python_version())'; }

# Make the environment of a Python without the packages in LEFT_OUT, and run the tests in it.
run_tests() {
  local python=$1 dir=.venv-pythons/$2
  mkdir -p .venv-pythons
  tr ' ' '\n' <<< "$LEFT_OUT" > "$dir.excludes"
  "$uv" venv --quiet --allow-existing --python "$python" "$dir" &&
    "$uv" pip install --quiet --python "$dir/bin/python" -c constraints.txt \
      --excludes "$dir.excludes" -e '.[dev]' &&
    RAY_AUTH_MODE=token "$dir/bin/python" -m pytest -p tests.other_pythons -m "$marks" \
      --ignore tests/serve/ui --ignore tests/data/test_pipeline_killed_anywhere.py \
      --ignore tests/serve/test_openapi.py -n 2 --dist loadfile -r fE
}

# What depends on a Python's version is not in torch, which of another minor version is a download of
# 3 GB, and whose tests take most of the time.
export LEFT_OUT="torch deepspeed accelerate"
# All at once: each waits for its last long test while the others have work.
status=0 summary="" done=" $(version .venv/bin/python) "
declare -A running
for name in ${PYTHONS:-system 3.13}; do
  python=$(find_python $name)
  number=${python:+$(version "$python")}
  if [ -z "$python" ]; then
    summary+="Python $name: not run, since there is none"$'\n'
  elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    summary+="Python $name: $number, not run, since 3.11 is the oldest supported"$'\n'
  elif [[ $done == *" $number "* ]]; then
    summary+="Python $name: $number, not run a second time"$'\n'
  else
    mkdir -p .venv-pythons
    run_tests "$python" "$number" > ".venv-pythons/$number.log" 2>&1 &
    running[$number]=$!
    done+="$number "
  fi
done
for number in "${!running[@]}"; do
  result=passed
  wait "${running[$number]}" || { result=FAILED status=1; }
  printf '\n== Python %s, without %s ==\n' "$number" "$LEFT_OUT"
  cat ".venv-pythons/$number.log"
  summary+="Python $number: $result, without $LEFT_OUT"$'\n'
done
printf '\n%s' "$summary"
exit $status
