"""Rules that hold for every source file. A failure says what to change."""

import ast
import graphlib
import re

import pytest

from tests import processes
from tests.processes import ROOT

LIBRARY = sorted((ROOT / "pfpn_tf").rglob("*.py"))
TOOLS = sorted(path for folder in ("tools", "export") for path in (ROOT / folder).glob("[!_]*.py"))

# The data flow; a part imports only from parts before it.
ORDER = (
    "utils",
    "compat",
    "structures",
    "ops",
    "postprocess",
    "config_checks",
    "config",
    "flags",
    "data",
    "model",
    "losses",
    "distribution",
    "runs",
    "serving",
    "evaluation",
    "weights",
    "training",
    "benchmark",
    "experiments",
)

# Of these no one imports from another.
BESIDE_EACH_OTHER = {"serving", "evaluation", "weights"}


def relative(path):
    return str(path.relative_to(ROOT))


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"), relative(path))


def imported_names(tree):
    """(line, dotted name) of all imports, those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write imports in full, from pfpn_tf"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def project_imports(path):
    """(line, module) of the project's own modules that a file imports; module is dotted, without
    pfpn_tf."""
    for line, name in imported_names(parse(path)):
        parts = name.split(".")
        if parts[0] != "pfpn_tf":
            continue
        while len(parts) > 1 and not is_module(parts):
            parts.pop()  # the last part is a function or class
        if len(parts) > 1:
            yield line, ".".join(parts[1:])


def is_module(parts):
    path = ROOT.joinpath(*parts)
    return path.is_dir() or path.with_suffix(".py").exists()


def own_name(path):
    return ".".join(path.relative_to(ROOT / "pfpn_tf").with_suffix("").parts)


@pytest.mark.parametrize("path", LIBRARY, ids=relative)
def test_imports_follow_the_data_flow(path):
    own = own_name(path).split(".")[0]
    if own == "__init__":
        return  # test_importing_the_package_is_light
    assert own in ORDER, f"{own} is new: give it its place in ORDER, CONTRIBUTING.md and its map"
    for line, module in project_imports(path):
        other = module.split(".")[0]
        assert other == own or not {own, other} <= BESIDE_EACH_OTHER, (
            f"{relative(path)}:{line}: {own} and {other} stand beside each other, so neither may "
            "import the other; move what both need to a part before them"
        )
        assert other in ORDER[: ORDER.index(own) + 1], (
            f"{relative(path)}:{line}: {own} comes before {other} in the data flow, so it must not "
            f"import it; move what both need to the earlier one, or pass it as an argument"
        )


def test_the_order_of_imports_is_told():
    assert f"\n    {' '.join(ORDER)}\n" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_contributing_names_files_that_exist():
    folders = ("configs", "pfpn_tf", "tests", "tools")
    files = [*ROOT.iterdir(), *(p for folder in folders for p in (ROOT / folder).rglob("*"))]
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:\w+/)*(?:\w+\.(?:py|md|cfg|toml))?)`", text)
    named = [name for name in named if name and name != "make_seeded_checkpoint.py"]
    assert "pfpn_tf/config.py" in named and "evaluation/" in named
    for name in named:
        end = f"/{name.rstrip('/')}"
        assert any(str(file).endswith(end) for file in files), f"CONTRIBUTING.md names {name}"


def test_no_import_cycles_inside_a_part():
    """A cycle is told as its modules."""
    imports = {own_name(path): {module for _, module in project_imports(path)} for path in LIBRARY}
    graphlib.TopologicalSorter(imports).prepare()


@pytest.mark.parametrize("path", [p for p in LIBRARY if p.parent.name == "ops"], ids=relative)
def test_ops_know_no_settings(path):
    names = {module.split(".")[0] for _, module in project_imports(path)}
    assert not names & {"config", "flags"}, "ops take the values they need as arguments"


@pytest.mark.parametrize("path", LIBRARY + TOOLS, ids=relative)
def test_only_public_tensorflow(path):
    tree = parse(path)
    names = [name for _, name in imported_names(tree)]
    names += [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    private = [n for n in names if n.startswith(("tensorflow.python", "tf.python", "keras.src"))]
    assert not private, "private modules move between versions; use the public API"


@pytest.mark.parametrize("path", LIBRARY, ids=relative)
def test_the_library_reads_no_flags(path):
    if relative(path) in ("pfpn_tf/flags.py", "pfpn_tf/utils/cli.py"):
        return
    names = [name for _, name in imported_names(parse(path))]
    assert "absl.flags" not in names, "take a Config or the values themselves as arguments"


@pytest.mark.parametrize("path", LIBRARY + TOOLS, ids=relative)
def test_modules_say_what_they_are(path):
    if path.name == "__init__.py" and path.parent.name != "pfpn_tf":
        return
    assert ast.get_docstring(parse(path)), "start the file with a docstring"


HEAVY = ("tensorflow", "numpy", "cv2", "keras", "tf_keras")
OF_NETWORKS = ("pfpn_tf.model", "pfpn_tf.training", "pfpn_tf.weights")


@pytest.mark.parametrize(
    "code, heavy",
    [
        ("import pfpn_tf", HEAVY),
        ("import pfpn_tf.config", HEAVY),
        ("import pfpn_tf.flags", HEAVY),
        ("import pfpn_tf.utils.cli", HEAVY),
        ("import pfpn_tf.serving.client as c; c.connect('http://h:1', 'm')", ("tensorflow",)),
        ("import pfpn_tf.serving.predictor", OF_NETWORKS),
    ],
)
def test_light_imports(code, heavy):
    """Settings, messages and REST do not wait for TensorFlow, nor an export for Keras' layers."""
    done = processes.run_code(
        f"{code}; import sys; print([m for m in {heavy} if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr
    assert "tensorflow" not in heavy or done.stderr == ""


@pytest.mark.parametrize("path", TOOLS, ids=relative)
def test_help_shows_the_flags_of_the_tool(path):
    """Before the settings, which --helpfull adds."""
    done = processes.call(path, "--helpfull" if path.stem == "train" else "--help")
    assert done.stderr == ""
    assert done.stdout.startswith(ast.get_docstring(parse(path)).splitlines()[0])
    own = set(re.findall(r"flags\.DEFINE_\w+\(\s*\"(\w+)\"", path.read_text(encoding="utf-8")))
    shown = re.findall(r"^  --(?:\[no\])?(\w+):", done.stdout, re.MULTILINE)
    assert own and own <= set(shown[: len(own)])
    assert ("learning_rate" in shown) == (path.stem == "train")
