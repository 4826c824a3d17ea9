"""What setup.cfg declares is what the code imports, what the lists pin, and what tools need."""

import ast
import configparser
import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pfpn_tf
from pfpn_tf.data import synthetic

ROOT = pathlib.Path(__file__).parents[1]
STACKS = {"constraints/classic.txt": "3.11", "constraints/tf_keras.txt": "3.12"}


def setup_cfg():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def requirements():
    """All requirements, those of the extras included."""
    parser = setup_cfg()
    lines = parser["options"]["install_requires"].splitlines()
    for extra in parser["options.extras_require"].values():
        lines += extra.splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def pins(path):
    lines = (ROOT / path).read_text().splitlines()
    found = [
        re.fullmatch(r"([\w.-]+)==([\w.]+)", line) for line in lines if not line.startswith("#")
    ]
    assert all(found), f"{path}: only lines of the form name==version, no addresses"
    assert len({canonicalize_name(f[1]) for f in found}) == len(found), f"{path}: a package twice"
    return {canonicalize_name(f[1]): f[2] for f in found}


@pytest.mark.parametrize("path, python_version", STACKS.items())
def test_lists_fulfil_the_requirements(path, python_version):
    versions = pins(path)
    environment = {"python_version": python_version}
    for requirement in requirements():
        if requirement.marker and not requirement.marker.evaluate(environment):
            continue
        version = versions.get(canonicalize_name(requirement.name))
        assert version, f"{path} lacks {requirement.name}"
        assert requirement.specifier.contains(version), f"{path}: {requirement.name} {version}"


def test_one_opencv():
    """Both distributions install into the same folder."""
    for path in STACKS:
        versions = pins(path)
        assert versions["opencv-python"] == versions["opencv-python-headless"]


def test_imports_are_declared():
    declared = {canonicalize_name(requirement.name) for requirement in requirements()}
    # On Python 3.11 the installed stack may be either; tf_keras is imported as tf.keras.
    distributions = importlib.metadata.packages_distributions()
    distributions.setdefault("panopticapi", ["panopticapi-lite"])  # Not on every stack.
    sources = [
        p for folder in ("pfpn_tf", "tools", "export") for p in (ROOT / folder).rglob("*.py")
    ]
    for path in sources:
        for name in top_level_imports(path):
            own = name == "pfpn_tf" or (ROOT / "export" / f"{name}.py").exists()
            if own or name in sys.stdlib_module_names:
                continue
            providers = {canonicalize_name(d) for d in distributions.get(name, [name])}
            assert (
                providers & declared
            ), f"{path.relative_to(ROOT)} imports {name}: add it to setup.cfg"


def top_level_imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def test_every_package_is_packaged():
    folders = [path.parent for path in (ROOT / "pfpn_tf").rglob("*.py")]
    assert all((folder / "__init__.py").exists() for folder in folders)


def test_the_version_is_told_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert str(citation["version"]) == pfpn_tf.__version__
    assert f"## {pfpn_tf.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_licence_is_the_declared_one():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text
    assert setup_cfg()["metadata"]["license"] == "Apache-2.0"


@pytest.mark.parametrize("script", [*(ROOT / "tools").glob("*.sh"), ROOT / ".ci" / "run"], ids=str)
def test_shell_scripts_parse(script):
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.both_stacks
def test_a_tool_says_nothing_but_its_own_words(tmp_path):
    """TensorFlow's, the addons' and gRPC's start-up noise stays off the terminal."""
    synthetic.make_dataset(tmp_path, 2, 1, sides=(40, 60))
    command = [sys.executable, str(ROOT / "tools" / "create_tfrecords.py"), "--split=train"]
    command += [f"--output_dir={tmp_path}/records", f"--image_dir={tmp_path}/train"]
    command += [f"--panoptic_json={tmp_path}/annotations/panoptic_train.json", "--num_workers=1"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TF_", "PYTEST"))}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    noise = [line for line in done.stderr.splitlines() if not line.startswith("train")]
    assert noise == []
    assert "train: 2 images" in done.stdout
