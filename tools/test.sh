#!/usr/bin/env bash
# Installs what the project needs into .venv and runs the tests.
#
#   bash tools/test.sh                    all tests
#   bash tools/test.sh tests/ops -k nms   some tests; arguments go to pytest
#   bash tools/test.sh --setup_only       install and stop
#
# The tests run twice: those marked both_stacks on TensorFlow 2.20 with tf-keras (.venv_tf_keras),
# then all of them on the stack that setup.cfg chooses for this Python (.venv). PYTHON names the
# interpreter for new environments. Two processes share the files. Tests against reference data need
# its folder in PFPN_TF_TEST_DATA and are skipped without it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
  local name
  for name in ${PYTHON:-python3.11 python3.12 python3}; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  echo "Error: no Python 3.11 or newer found; name one with PYTHON=/path/to/python." >&2
  exit 2
}

# make_environment FOLDER COMMAND...: runs COMMAND with FOLDER's pip unless FOLDER has been made
# from these very inputs already.
make_environment() {
  local folder=$1 inputs
  shift
  inputs=$(cat setup.cfg pyproject.toml constraints/*.txt | cksum; pwd; echo "$*")
  if [[ -f $folder/inputs && $(<"$folder/inputs") == "$inputs" ]]; then
    return
  fi
  echo "Installing into $folder (one to a few minutes) ..."
  if ! "$folder/bin/python" -c '' 2>/dev/null; then
    rm -rf "$folder"
    "$(find_python)" -m venv "$folder"
  fi
  # Compiling TensorFlow whole takes longer than installing it; imports compile what they need.
  "$folder/bin/python" -m pip -qq --disable-pip-version-check install --no-compile "$@"
  echo "$inputs" >"$folder/inputs"
  echo "Installed into $folder."
}

is_classic() {
  "${1:-$(find_python)}" -c 'import sys; sys.exit(sys.version_info >= (3, 12))'
}

main_environment() {
  local python=.venv/bin/python constraints=constraints/tf_keras.txt
  "$python" -c '' 2>/dev/null || python=$(find_python)
  is_classic "$python" && constraints=constraints/classic.txt
  make_environment .venv -c "$constraints" -e '.[dev,eval,serving,panopticapi]'
}

main_environment
if [[ ${1:-} == --setup_only ]]; then
  exit
fi

# Tracing and Python, which take most of the time, use one core each.
parallel=(--numprocesses=2 --dist=loadfile --no-loadscope-reorder)
failed=()
if is_classic .venv/bin/python; then
  # On this Python setup.cfg asks for the classic stack, so the packages of the other one are
  # installed from their list.
  make_environment .venv_tf_keras --no-deps -r constraints/tf_keras.txt
  echo "TensorFlow 2.20 with tf-keras: tests marked both_stacks"
  status=0
  .venv_tf_keras/bin/python -m pytest -q "${parallel[@]}" -m both_stacks "$@" || status=$?
  # 5: the given arguments select none of the marked tests.
  if ((status != 0 && !(status == 5 && $# > 0))); then
    failed+=("tf-keras stack")
  fi
  echo "TensorFlow 2.15: all tests"
fi
run_tests() {
  .venv/bin/python -m pytest -q "${parallel[@]}" --durations=15 "$@" || failed+=("main stack")
}
if (($#)); then
  run_tests "$@"
else
  # In two parts: TensorFlow returns the memory of graphs only when a process ends.
  run_tests --ignore=tests/training
  run_tests tests/training
fi
if ((${#failed[@]})); then
  printf 'FAILED on the %s, see above.\n' "${failed[@]}" >&2
  exit 1
fi
