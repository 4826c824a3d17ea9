"""What setup.cfg declares is what the code imports, what the lists pin, and what tools need."""

import configparser
import importlib.metadata
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import pfpn_tf
from tests.processes import ROOT
from tests.test_source_rules import LIBRARY, TOOLS, imported_names, parse, relative

LISTS = {
    "3.11": "constraints/classic.txt",
    "3.12": "constraints/tf_keras.txt",
    "3.13": "constraints/tf_keras.txt",
}


def read_yaml(path):
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


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


@pytest.mark.parametrize("python_version, path", LISTS.items())
def test_lists_fulfil_the_requirements(python_version, path):
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
    for path in set(LISTS.values()):
        versions = pins(path)
        assert versions["opencv-python"] == versions["opencv-python-headless"]


def test_imports_are_declared():
    declared = {canonicalize_name(requirement.name) for requirement in requirements()}
    declared.add("supervision")  # Result.to_supervision is for those who have it.
    # On Python 3.11 the installed stack may be either; tf_keras is imported as tf.keras.
    distributions = importlib.metadata.packages_distributions()
    distributions.setdefault("panopticapi", ["panopticapi-lite"])  # Not on every stack.
    for path in LIBRARY + TOOLS:
        for name in {name.split(".")[0] for _, name in imported_names(parse(path))}:
            if name == "pfpn_tf" or name in sys.stdlib_module_names:
                continue
            providers = {canonicalize_name(d) for d in distributions.get(name, [name])}
            assert providers & declared, f"{relative(path)} imports {name}: add it to setup.cfg"


def test_every_tool_is_a_command():
    lines = setup_cfg()["options.entry_points"]["console_scripts"].strip().splitlines()
    commands = dict(line.split(" = ") for line in lines)
    assert {"pfpn-convert", "pfpn-train", "pfpn-eval", "pfpn-export"} <= set(commands)
    modules = {f"pfpn_tf.{path.parent.name}.{path.stem}:main" for path in TOOLS}
    assert set(commands.values()) == modules
    for path in TOOLS:
        text = path.read_text(encoding="utf-8")
        assert "\n@cli.command\ndef main():\n" in text and "sys.path" not in text


def test_the_version_is_told_the_same_everywhere():
    citation = read_yaml("CITATION.cff")
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


def test_the_python_versions_are_told_the_same_everywhere():
    parser = setup_cfg()
    required = SpecifierSet(parser["options"]["python_requires"])
    assert [f"3.{minor}" for minor in range(40) if f"3.{minor}" in required] == list(LISTS)
    classifiers = parser["metadata"]["classifiers"]
    assert re.findall(r"Python :: (3\.\d+)", classifiers) == list(LISTS)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "Python 3.11, 3.12 or 3.13" in readme
    job = read_yaml(".github/workflows/test.yml")["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == list(LISTS)
    for path in set(LISTS.values()):
        versions = ", ".join(version for version, of in LISTS.items() if of == path)
        assert re.search(rf"^\| {re.escape(versions)} \|.* `{path}` \|$", readme, re.MULTILINE)


# Stands for a Python: tells another version, may lack a module, makes no environment, installs
# nothing, and says which checks and tests it would run, and how.
STAND_IN = """#!/bin/bash
[[ $1 == -c ]] && exec {real!r} -S -c 'import sys; {lie}; exec(sys.argv[1])' "$2"
case $2 in
  venv) echo "chosen: $0 $*"; exit 3 ;;
  pytest) echo "$0 $TF_ENABLE_ONEDNN_OPTS ${{*: -1}}" ;;
  black|isort|flake8|mypy) echo "check: $0 $*" ;;
esac
[[ " $* " != *" {failing} "* ]]
"""
BROKEN = "sys.exit(127)"  # pyenv's command for a version that is not chosen
NO_VENV = "sys.version_info = (3, 13); sys.modules['ensurepip'] = None"  # Debian's python3 alone
PROGRAMS = "bash", "cat", "cksum", "dirname", "mktemp", "rm", "sort", "uniq"


def version_is(*numbers):
    return f"sys.version_info = {numbers}"


@pytest.fixture
def run(tmp_path):
    """A function that runs a script of tools/ in a checkout where only the given Pythons are."""
    programs, checkout = tmp_path / "some programs", tmp_path / "a checkout"
    programs.mkdir()
    for name in PROGRAMS:
        (programs / name).symlink_to(shutil.which(name))
    shutil.copytree(ROOT / "tools", checkout / "tools")
    for name in ("setup.cfg", "pyproject.toml", "constraints"):
        (checkout / name).symlink_to(ROOT / name)

    def run(pythons, *command, failing="nothing", **variables):
        for name, lie in pythons.items():
            path = (tmp_path if "/" in name else programs) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            lie = lie.replace("'", '"')
            path.write_text(STAND_IN.format(real=sys.executable, lie=lie, failing=failing))
            path.chmod(0o755)
        given = {name: value for name, value in variables.items() if value}
        given["PATH"] = f"{programs}:{tmp_path}/system"
        command = ["bash", *command]
        return subprocess.run(command, cwd=checkout, env=given, capture_output=True, text=True)

    return run


SET_UP = "tools/test.sh", "--setup_only"


@pytest.mark.parametrize(
    "pythons, named, chosen",
    [
        ({"python3.11": version_is(3, 11), "python3.12": version_is(3, 12)}, "", "python3.11"),
        ({"python3.11": BROKEN, "python3.12": version_is(3, 12)}, "", "python3.12"),
        ({"python3.11": BROKEN, "python3": version_is(3, 13)}, "", "python3"),
        ({"python3.13": NO_VENV, "python3": version_is(3, 13)}, "", "python3"),
        ({"python3": version_is(3, 14), "python": version_is(3, 12)}, "", "python"),
        ({"python3": version_is(3, 11), "my python": version_is(3, 13)}, "my python", "my python"),
        # pyenv puts its commands before the system's.
        ({"python3": BROKEN, "system/python3": version_is(3, 13)}, "", "system/python3"),
    ],
)
def test_set_up_chooses_a_python(run, pythons, named, chosen):
    done = run(pythons, *SET_UP, PYTHON=named)
    assert f"{chosen} -m venv .venv" in done.stdout, done.stderr


@pytest.mark.parametrize("command", [SET_UP, ("tools/demo.sh",)])
@pytest.mark.parametrize(
    "pythons, named, message",
    [
        ({}, "", "no Python found; install Python 3.11, 3.12 or 3.13, or name one"),
        ({"python3.11": BROKEN}, "", "no Python found; install"),
        ({"python3": version_is(3, 14)}, "", "only Python 3.14 found; install Python 3.11"),
        ({"python3": version_is(3, 10)}, "", "only Python 3.10 found; install Python 3.11"),
        ({"python3": NO_VENV}, "", "without the module venv: apt install python3-venv (or"),
        ({"python3": version_is(3, 11), "new one": version_is(3, 14)}, "new one", "is Python 3.14"),
        ({"python3": version_is(3, 11)}, "python3.9", "PYTHON=python3.9 does not run; name a"),
        (
            {"a checkout/.venv/bin/python": version_is(3, 14)},
            "",
            ".venv has Python 3.14, not 3.11, 3.12 or",
        ),
        (
            {"a checkout/.venv/bin/python": version_is(3, 11), "python3.13": version_is(3, 13)},
            "python3.13",
            ".venv has Python 3.11, PYTHON=python3.13 is 3.13; rm -r .venv",
        ),
    ],
)
def test_set_up_says_in_one_line_what_is_missing(run, command, pythons, named, message):
    done = run(pythons, *command, PYTHON=named)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr


CHECKS = ["black --check .", "isort --check .", "flake8", "mypy"]
BOTH, REST, TRAINING = "both_stacks", "--ignore=tests/training", "tests/training"


def environments(*version):
    """Those that a user with this version of Python has."""
    names = (".venv", ".venv_tf_keras") if version == (3, 11) else (".venv",)
    return {f"a checkout/{name}/bin/python": version_is(*version) for name in names}


def checks_of(output):
    return re.findall(r"^check: \.venv/bin/python -m (.*)$", output, re.MULTILINE)


def parts_of(output):
    return re.findall(r"^(\S+)/bin/python (\d) (\S+)$", output, re.MULTILINE)


@pytest.mark.parametrize(
    "version, onednn, parts",
    [
        ((3, 11), "", [(".venv_tf_keras", 0, BOTH), (".venv", 1, REST), (".venv", 1, TRAINING)]),
        ((3, 11), "0", [(".venv_tf_keras", 0, BOTH), (".venv", 0, REST), (".venv", 0, TRAINING)]),
        ((3, 13), "", [(".venv", 0, BOTH), (".venv", 1, REST), (".venv", 1, TRAINING)]),
        ((3, 13), "1", [(".venv", 1, REST), (".venv", 1, TRAINING)]),
    ],
)
@pytest.mark.parametrize("failing", [BOTH, REST, TRAINING, "nothing"])
def test_parts_of_the_tests(run, version, onednn, parts, failing):
    pythons = environments(*version)
    done = run(pythons, "tools/test.sh", failing=failing, TF_ENABLE_ONEDNN_OPTS=onednn)
    expected = [(folder, str(value), last) for folder, value, last in parts]
    assert parts_of(done.stdout) == expected, done.stderr
    fails = failing in [last for _, _, last in parts]
    assert done.returncode == int(fails)
    assert done.stderr.count("FAILED") == int(fails)


@pytest.mark.parametrize("failing", [None, *CHECKS])
def test_the_checks_come_first(run, failing):
    """A check that fails is named at the end; the others and the tests run all the same."""
    done = run(environments(3, 13), "tools/test.sh", failing=failing)
    assert checks_of(done.stdout) == CHECKS
    assert done.stdout.rindex("check: ") < done.stdout.index(BOTH)
    assert len(parts_of(done.stdout)) == 3
    assert done.returncode == (1 if failing else 0)
    assert done.stderr == (f"FAILED, see above: {failing}\n" if failing else "")


def test_arguments_select_tests_and_no_checks(run):
    done = run(environments(3, 13), "tools/test.sh", "tests/ops")
    assert checks_of(done.stdout) == []
    assert parts_of(done.stdout) == [(".venv", "0", "tests/ops"), (".venv", "1", "tests/ops")]
    assert (done.returncode, done.stderr) == (0, "")


def test_pre_commit_runs_the_same_checks():
    """But on the files of the commit, where a check takes files."""
    (repository,) = read_yaml(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    entries = {hook["id"]: hook["entry"] for hook in repository["hooks"]}
    assert list(entries.values()) == [
        f".venv/bin/python -m {check.removesuffix(' .')}" for check in CHECKS
    ]
    assert all(hook["language"] == "system" for hook in repository["hooks"])


def test_the_workflow_runs_the_commands_of_the_readme():
    steps = read_yaml(".github/workflows/test.yml")["jobs"]["test"]["steps"]
    commands = [step["run"] for step in steps if "run" in step]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert commands == ["bash tools/test.sh", "bash tools/demo.sh"]
    assert all(f"\n    {command}\n" in readme for command in commands)


@pytest.mark.parametrize("path", (ROOT / ".github/ISSUE_TEMPLATE").iterdir(), ids=lambda p: p.name)
def test_issue_forms(path):
    """GitHub shows no form that breaks one of these rules."""
    form = read_yaml(path)
    assert form["name"] and form["description"]
    ids = [element["id"] for element in form["body"]]
    assert len(set(ids)) == len(ids)
    for element in form["body"]:
        assert set(element) <= {"type", "id", "attributes", "validations"}
        assert element["type"] in ("input", "textarea")
        assert isinstance(element["attributes"]["label"], str)
        assert isinstance(element["attributes"].get("description", ""), str)
