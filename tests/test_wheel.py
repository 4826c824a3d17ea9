"""The package as pip installs it: a wheel in an environment without the checkout."""

import json
import os
import pathlib
import shutil
import site
import subprocess
import sys
import venv
import zipfile

import pytest

from tests import tiny
from tests.processes import ROOT

OFFLINE = ("--no-deps", "--no-index", "--no-build-isolation", "--quiet")
CODE = """
import sys
import pfpn_tf
from pfpn_tf.utils import recipes
from pfpn_tf.weights import zoo
for model in zoo.MODELS:
    assert zoo.config(model.full_name).data.dataset_info == zoo.COCO_INFO
assert len(zoo.coco_info().categories) == 133 and "tensorflow" not in sys.modules
print(pfpn_tf.__file__, recipes.ROOT, sep="\\n")
"""


# Without PYTHONPATH, by which pip and Python would find this checkout.
FOREIGN = ("PYTHON", "PYTEST", "TF_CPP", "COVERAGE")
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}


def call(*command, **options):
    command = list(map(str, command))
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, **options)


def files_of_the_package():
    """What a wheel must hold: all modules and tools, the mark of their types, the recipes."""
    paths = [*(ROOT / "pfpn_tf").rglob("*.py"), ROOT / "pfpn_tf" / "py.typed"]
    for folder, pattern in (("tools", "*.py"), ("export", "*.py"), ("configs", "*.*")):
        paths += [ROOT / "pfpn_tf" / p.relative_to(ROOT) for p in (ROOT / folder).rglob(pattern)]
    return {str(path.relative_to(ROOT)) for path in paths}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder of an environment with the wheel; the third-party packages are those of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    source, environment = folder / "source", folder / "environment"
    source.mkdir()
    for name in ("pfpn_tf", "tools", "export", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = sys.executable, "-m", "pip"
    built = call(*pip, "wheel", *OFFLINE, "--wheel-dir", folder, source)
    assert built.returncode == 0, built.stderr
    shutil.rmtree(source)
    venv.create(environment)
    python = environment / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == files_of_the_package()
    done = call(*pip, "--python", python, "install", *OFFLINE, wheel)
    assert done.returncode == 0, done.stderr
    # A path in a .pth file adds the folder, but not what .pth files in that folder name, as that
    # of an editable install does.
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()))
    return environment


@pytest.fixture(scope="module")
def run(installed, tmp_path_factory):
    """Runs a command of the environment in a folder that was empty at first."""
    folder = tmp_path_factory.mktemp("empty")

    def run(command, *arguments):
        return call(installed / "bin" / command, *arguments, cwd=folder)

    run.folder = folder
    return run


def test_what_is_imported_is_the_wheel_with_its_recipes(installed, run):
    done = run("python", "-c", CODE)
    assert done.returncode == 0, done.stderr
    imported, recipes = done.stdout.split()
    assert pathlib.Path(imported).is_relative_to(installed)
    assert pathlib.Path(recipes) == pathlib.Path(imported).parent


def test_a_recipe_that_is_not_there(run):
    done = run("pfpn-convert-weights", "--flagfile=configs/coco/panoptic_fpn_r50_1.flags")
    assert done.returncode == 2
    assert "--flagfile=configs/coco/panoptic_fpn_r50_1.flags: no such file" in done.stderr
    assert "did you mean configs/coco/panoptic_fpn_r50_1x.flags" in done.stderr


def test_training_export_and_prediction_from_an_empty_folder(run, tmp_path):
    """A semantic network: the least to trace. Its flagfile names others of the wheel."""
    records = tiny.make_records(tmp_path)
    recipe = (
        "--flagfile=configs/quick/synthetic_smoke.flags",
        f"--train_records={records}/train-*.tfrecord",
        *("--eval_records=", "--task=semantic", "--distribution=cpu", "--run_dir=run"),
        *("--backbone_norm=frozen_bn", "--head_norm=none", "--freeze_stages=0"),
        *("--fpn_channels=32", "--semantic_channels=32", "--global_batch_size=2"),
        *("--train_min_sides=64", "--train_max_side=64", "--eval_min_side=64"),
        *("--eval_max_side=64", "--image_interval_steps=0", "--steps_per_loop=1"),
        *("--train_steps=1", "--warmup_steps=0", "--lr_decay_steps="),
    )
    photos = tmp_path / "drawn" / "val"
    for command in (
        ("pfpn-train", *recipe),
        ("pfpn-export", "--run_dir=run", "--export_dir=model/1", "--allowed_batch_sizes=1"),
        ("pfpn-predict", "--saved_model=model/1", f"--images={photos}", "--output_dir=out"),
    ):
        done = run(*command)
        assert done.returncode == 0, done.stderr
    written = json.loads((run.folder / "out" / "predictions.json").read_text())
    assert len(written["annotations"]) == len(list(photos.iterdir())) == 2
