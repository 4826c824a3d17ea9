#!/usr/bin/env bash
# Installs what the project needs into .venv, checks the source code and runs the tests.
#
#   bash tools/test.sh                    the checks of the code and all tests
#   bash tools/test.sh tests/ops -k nms   some tests, no checks; arguments go to pytest
#   bash tools/test.sh --setup_only       install and stop
#
# The checks are black, isort, flake8 and mypy with the settings of pyproject.toml and setup.cfg.
# They change no file. .pre-commit-config.yaml runs the same four.
#
# PYTHON names the interpreter for new environments. Two processes run the tests. Tests against
# reference data need its folder in PFPN_TF_TEST_DATA and are skipped without it.
#
# Processors differ in the kernels that TensorFlow takes, oneDNN's or Eigen's, so on any machine the
# tests marked both_stacks run with TF_ENABLE_ONEDNN_OPTS=0, then all tests with 1; where the user
# has set the variable, all tests run with that value. On Python 3.11 the first of these two runs
# takes TensorFlow 2.20 with tf-keras (.venv_tf_keras), the other TensorFlow 2.15 (.venv).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Without bytecode each process compiles TensorFlow's thousands of modules anew, which takes 8 s
# instead of 3 s. Containers often set this.
unset PYTHONDONTWRITEBYTECODE

error() {
  echo "Error: $*" >&2
  exit 2
}

# version PYTHON: as 3.12. Fails where PYTHON does not run, like pyenv's commands for versions not
# chosen.
version() {
  "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

is_supported() {
  [[ $1 == 3.11 || $1 == 3.12 || $1 == 3.13 ]]
}

candidates() {
  if [[ -n ${PYTHON:-} ]]; then
    echo "$PYTHON"
  else
    # All in PATH: behind a command of pyenv that fails there may be the system's.
    type -aP python3.11 python3.12 python3.13 python3 python
  fi
}

find_python() {
  local name found without_venv='' others=''
  while read -r -u 3 name; do
    found=$(version "$name") || continue
    if ! is_supported "$found"; then
      others=$found
    elif "$name" -c 'import ensurepip, venv' 2>/dev/null; then
      echo "$name"
      return
    else
      without_venv="$name is Python $found"
    fi
  done 3< <(candidates)
  if [[ $without_venv ]]; then
    error "$without_venv without the module venv: apt install python3-venv" \
      "(or python${without_venv##* }-venv)"
  elif [[ -n ${PYTHON:-} ]]; then
    error "PYTHON=$PYTHON ${others:+is Python }${others:-does not run}; name a Python 3.11, 3.12" \
      "or 3.13."
  fi
  error "${others:+only Python }${others:-no Python} found; install Python 3.11, 3.12 or 3.13, or" \
    "name one: PYTHON=/path/to/python"
}

# make_environment FOLDER PYTHON ARGUMENTS...: installs ARGUMENTS into FOLDER, a new environment of
# PYTHON where there is none, unless this has been done with these very inputs.
make_environment() {
  local folder=$1 python=$2 start=$SECONDS inputs
  shift 2
  inputs=$(cat setup.cfg pyproject.toml constraints/*.txt | cksum; pwd; echo "$*")
  if [[ -f $folder/inputs && $(<"$folder/inputs") == "$inputs" ]]; then
    return
  fi
  echo "Installing into $folder (Python $(version "$python"); one to a few minutes) ..."
  if ! version "$folder/bin/python" >/dev/null; then
    rm -rf "$folder"
    "$python" -m venv "$folder"
  fi
  local pip=("$folder/bin/python" -m pip -qq --disable-pip-version-check)
  # Compiling TensorFlow whole takes longer than installing it; imports compile what they need. The
  # pip of Debian 12 builds no wheels without --use-pep517; newer ones always do as it says.
  local install=(install --no-compile --use-pep517)
  if is_classic && [[ $folder == .venv && ! -f .venv/inputs && ! -d .venv_tf_keras ]]; then
    # Both environments need most of the packages. Whether pip's own cache keeps them or not, these
    # are downloaded and built once; .wheels holds them until both environments are there.
    rm -rf .wheels
    "${pip[@]}" wheel --no-deps --use-pep517 --wheel-dir=.wheels -r <(in_both_lists)
  fi
  if is_classic && [[ -d .wheels && ! -f $folder/inputs ]]; then
    "${pip[@]}" "${install[@]}" --no-deps .wheels/*.whl
  fi
  "${pip[@]}" "${install[@]}" "$@"
  echo "$inputs" >"$folder/inputs"
  echo "Installed into $folder in $((SECONDS - start)) s."
}

in_both_lists() {
  sort constraints/classic.txt constraints/tf_keras.txt | uniq --repeated
}

# TensorFlow 2.15 with Keras 2, as setup.cfg chooses by the version of Python.
is_classic() {
  [[ $main_version == 3.11 ]]
}

python=.venv/bin/python
main_version=$(version "$python") || main_version=
if [[ -z $main_version || -n ${PYTHON:-} ]]; then
  python=$(find_python)
  wanted=$(version "$python")
  if [[ $main_version && $main_version != "$wanted" ]]; then
    error ".venv has Python $main_version, PYTHON=$PYTHON is $wanted; rm -r .venv makes way for it."
  fi
  main_version=$wanted
elif ! is_supported "$main_version"; then
  error ".venv has Python $main_version, not 3.11, 3.12 or 3.13; rm -r .venv makes way for these."
fi
constraints=constraints/tf_keras.txt
if is_classic; then
  constraints=constraints/classic.txt
fi
make_environment .venv "$python" -c "$constraints" -e '.[dev,eval,serving,panopticapi]'
if [[ ${1:-} == --setup_only ]]; then
  exit
fi
if is_classic; then
  # Here setup.cfg asks for the classic stack, so the packages of the other come from their list.
  make_environment .venv_tf_keras "$python" --no-deps -r constraints/tf_keras.txt
  rm -rf .wheels
fi

failed=() allowed_status=0
if ((!$#)); then
  # All at once; what they say comes in this order.
  checks=("black --check ." "isort --check ." flake8 mypy) processes=()
  logs=$(mktemp -d)
  for check in "${checks[@]}"; do
    # shellcheck disable=SC2086 # The words of $check are the arguments.
    .venv/bin/python -m $check &>"$logs/$check" &
    processes+=($!)
  done
  for i in "${!checks[@]}"; do
    wait "${processes[i]}" || failed+=("${checks[i]}")
    printf '\n=== %s ===\n' "${checks[i]}"
    cat "$logs/${checks[i]}"
  done
  rm -r "$logs"
fi
# part TITLE PYTHON ONEDNN ARGUMENTS...: runs pytest, with TF_ENABLE_ONEDNN_OPTS=ONEDNN unless the
# user has set it. Tracing and Python, which take most of the time, use one core each.
part() {
  local python=$2 onednn=${TF_ENABLE_ONEDNN_OPTS:-$3} status=0
  local title="$1, TF_ENABLE_ONEDNN_OPTS=$onednn"
  shift 3
  printf '\n=== %s ===\n' "$title"
  TF_ENABLE_ONEDNN_OPTS=$onednn "$python" -m pytest -q --numprocesses=2 --dist=loadfile \
    --no-loadscope-reorder --durations=15 "$@" || status=$?
  if ((status != 0 && status != allowed_status)); then
    failed+=("$title")
  fi
}

if (($#)); then
  allowed_status=5 # The user's arguments select none of the marked tests.
fi
if is_classic; then
  part "Tests marked both_stacks, TensorFlow 2.20" .venv_tf_keras/bin/python 0 -m both_stacks "$@"
elif [[ -z ${TF_ENABLE_ONEDNN_OPTS:-} ]]; then
  part "Tests marked both_stacks" .venv/bin/python 0 -m both_stacks "$@"
fi
allowed_status=0
if (($#)); then
  part "Tests" .venv/bin/python 1 "$@"
else
  # In two parts: TensorFlow returns the memory of graphs only when a process ends.
  part "All tests but those of training" .venv/bin/python 1 --ignore=tests/training
  part "Tests of training" .venv/bin/python 1 tests/training
fi
if ((${#failed[@]})); then
  printf 'FAILED, see above: %s\n' "${failed[@]}" >&2
  exit 1
fi
printf '\nAll parts passed, in %d min %02d s.\n' $((SECONDS / 60)) $((SECONDS % 60))
