"""The examples in tools/cluster: what they tell a worker is what it understands."""

import os
import pathlib
import subprocess

import pytest

from pfpn_tf.config import all_fields
from pfpn_tf.distribution import strategies

FOLDER = pathlib.Path(__file__).parents[2] / "tools" / "cluster"

SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
for i in 0 1; do
  code=0; SLURM_PROCID=$i "$@" || code=$?
  status=$((code > status ? code : status))  # srun's is the highest
done
exit $status
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then printf 'host1\\nhost2\\n'; else echo "$@"; fi
"""
TRAIN = """#!/usr/bin/env bash
echo "$TF_CONFIG"; echo "ARGUMENTS $*"
codes=($CODES_OF_WORKERS); exit ${codes[$SLURM_PROCID]}
"""


@pytest.mark.parametrize(
    "codes, requeued",
    [
        ("0 0", False),
        ("2 138", False),
        ("138 3", False),
        ("138 1", True),
        ("137 138", True),
        ("143 143", True),
        ("130 130", False),
    ],
)
def test_the_slurm_script(tmp_path, codes, requeued):
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("train", TRAIN)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHON": str(tmp_path / "train"),
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NODELIST": "host[1-2]",
        "CODES_OF_WORKERS": codes,
    }
    command = ["bash", str(FOLDER / "train.sbatch"), "--run_dir=/with space", "--seed=3"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == max(map(int, codes.split())), done.stderr
    lines = done.stdout.splitlines()
    configs = [line for line in lines if line.startswith("{")]
    assert [strategies.parse_tf_config(c) for c in configs] == [
        (["host1:20077", "host2:20077"], i) for i in (0, 1)
    ]
    expected = "ARGUMENTS tools/train.py --distribution=multi_worker --run_dir=/with space --seed=3"
    assert [line for line in lines if line.startswith("ARGUMENTS")] == [expected] * 2
    assert f"The workers ended with {codes}." in lines
    assert ("requeue 77" in lines) == requeued


def test_the_flags_of_the_kubernetes_example_exist():
    text = (FOLDER / "tfjob.yaml").read_text()
    flags = [
        line.split("--")[1].split("=")[0]
        for line in text.splitlines()
        if line.strip().startswith("- --")
    ]
    assert len(flags) > 5 and set(flags) <= {*all_fields(), "flagfile", "run_dir"}
    assert "restartPolicy: ExitCode" in text
