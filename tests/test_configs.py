"""Every flagfile is valid, and what its header and the README tell people to type exists."""

import json
import re

import pytest

from pfpn_tf import config as config_lib
from pfpn_tf import flags
from pfpn_tf.utils.errors import UserError
from tests.processes import ROOT
from tests.test_source_rules import relative

FLAGFILES = sorted((ROOT / "configs").rglob("*.flags"))
RECIPES = [path for path in FLAGFILES if path.parent.name != "base"]
TEXTS = [
    *FLAGFILES,
    *sorted((ROOT / "tools").glob("*.sh")),
    *[ROOT / folder / "README.md" for folder in (".", "configs", "export", "tools")],
]


def parse_flagfile(path):
    """The settings that a flagfile gives and the `Config` they make."""
    settings = flags.settings_of([f"--flagfile={path}"])
    return settings, config_lib.Config().replace(**settings)


@pytest.mark.parametrize("path", FLAGFILES, ids=relative)
def test_flagfile_parses_and_validates(path):
    assert parse_flagfile(path)[0], "sets nothing"


@pytest.mark.parametrize("path", FLAGFILES, ids=relative)
def test_overrides_come_after_the_fragments(path):
    """absl lets the last value win, so a fragment below a setting would undo it."""
    lines = [line for line in path.read_text().splitlines() if line.startswith("--")]
    fragments = [line.startswith("--flagfile=") for line in lines]
    assert fragments == sorted(fragments, reverse=True), "put the --flagfile lines first"


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"size_divisor": 48}, "--size_divisor=48 must be a multiple of 32"),
        ({"decoder": "symmetric"}, "--decoder=symmetric .* use --task=semantic"),
        ({"output_stride": 8, "task": "semantic"}, "--output_stride=8 .* use --decoder=none"),
        ({"output_stride": 4}, "--output_stride=4 must be one of 32, 16, 8"),
        ({"decoder": "none", "task": "semantic"}, "--decoder=none with --semantic_head=fpn"),
        ({"semantic_head": "deeplabv3"}, "--decoder=fpn with --semantic_head=deeplabv3"),
        ({"fpn_groups": 2, "task": "semantic"}, "--fpn_groups=2 with --task=semantic with --deco"),
        ({"fpn_groups": 2, "fpn_channels": 255}, "--fpn_channels=255 with --fpn_groups=2"),
        ({"alternate_losses": True, "task": "instance"}, "--alternate_losses.* --task=instance"),
        ({"crop_bootstrap": 0.5}, "--crop_bootstrap=0.5 .* add --crop_size"),
        ({"eval_losses": True}, "--eval_losses=true with --eval_interval_steps=0 .* add --eval_i"),
        ({"early_stop_evals": 3}, "--early_stop_evals=3 .* no evaluations to count; add --eval_i"),
        ({"xla": True}, "--xla.* add --static_shapes"),
        (
            {"xla": True, "static_shapes": True, "roi_sampling_ratio": 0},
            "--xla.* --roi_sampling_ratio=0.*use --roi_sampling_ratio=2, or --noxla",
        ),
        ({"train_max_side": 799}, "--train_min_sides=.*,800 .* raise --train_max_side"),
        ({"lr_decay_steps": (5, 4), "warmup_steps": 0}, "--lr_decay_steps=5,4 must rise"),
        ({"lr_decay_steps": (1000, 2000)}, "--lr_decay_steps=.*--warmup_steps=1000"),
        (
            {"backbone_recompute": True, "backbone_norm": "sync_bn"},
            "--backbone_recompute=true with --backbone_norm=sync_bn",
        ),
        ({"restored_lr_factor": 0.5}, "--restored_lr_factor=0.5 .*--init_weights"),
        ({"allowed_batch_sizes": ()}, "--allowed_batch_sizes="),
        ({"allowed_batch_sizes": (0, 1)}, "--allowed_batch_sizes="),
        ({"allowed_batch_sizes": (2, 1)}, "--allowed_batch_sizes="),
        ({"allowed_batch_sizes": (1, 1)}, "--allowed_batch_sizes="),
        ({"semantic_scales": ()}, "--semantic_scales"),
        ({"semantic_scales": (0.0, 1.0)}, "--semantic_scales"),
        ({"semantic_scales": (1.0, 1.0)}, "--semantic_scales"),
    ],
)
def test_variants_that_exclude_one_another(settings, message):
    with pytest.raises(ValueError, match=message):
        config_lib.Config().replace(**settings)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("global_batch_size", 16.5, "=16.5 must be a whole number. The default is 16."),
        ("global_batch_size", True, "=true must be a whole number"),
        ("global_batch_size", "16", "=16 must be a whole number"),
        ("random_flip", "no", "=no must be true or false. The default is true."),
        ("random_flip", 0, "=0 must be true or false"),
        ("learning_rate", float("nan"), "=nan must be a number"),
        ("train_records", None, "=None must be a text. The default is empty."),
        ("train_max_side", 0, "=0 must be at least 32"),
        ("train_min_sides", [0, 640], "=0,640 must each be at least 1"),
        ("train_min_sides", 640, "=640 must be a list"),
        ("train_min_sides", ["640"], "=640 must each be a whole number"),
        ("train_min_sides", [], "= does not hold as many numbers as it needs"),
        ("crop_size", [512], "=512 does not hold as many .* 512,1024"),
        ("anchor_sizes", [32, 64, 128, 256, 0], "=32,64,128,256,0 must each be above 0"),
        ("max_instances", 10**30, f"={10**30} must be below 2..63"),
    ],
)
def test_a_value_that_is_none_of_its_setting(name, value, message):
    """As JSON and from Python; a text or a fraction would else be found in the middle of a run."""
    content = json.loads(config_lib.Config().to_json())
    group = next(group for group in content.values() if name in group)
    group[name] = value
    for make in (
        lambda: config_lib.Config().replace(**{name: value}),
        lambda: config_lib.from_json(json.dumps(content)),
    ):
        with pytest.raises(UserError, match=f"^--{name}{message}"):
            make()


@pytest.mark.parametrize("path", RECIPES, ids=relative)
def test_recipe_header_tells_how_to_run_it(path):
    header = path.read_text().split("\n--")[0]
    script = re.search(r"bash (tools/\w+\.sh)", header)
    text = header + ((ROOT / script[1]).read_text() if script else "")
    assert relative(path) in text, "name the command that runs this very recipe"
    if path.parent.name in ("coco", "cityscapes", "camvid"):
        for word in ("Hardware:", "Duration:"):
            assert word in header, f"state the {word.lower()[:-1]}"
        numbers = ("Expected on", "Measured on", "ot in the paper", "authors have")
        assert any(word in header for word in numbers), "state the numbers to expect"


def test_the_reproduction_table_names_every_recipe():
    text = (ROOT / "configs" / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:coco|cityscapes|camvid)/[\w.]+)`", text))
    folders = ("coco", "cityscapes", "camvid")
    recipes = {
        str(path.relative_to(ROOT / "configs").with_suffix(""))
        for path in RECIPES
        if path.parent.name in folders
    }
    assert recipes - named <= {"camvid/ablation"}, "add a row"
    assert not named - recipes, "there is no such recipe"


def commands(path):
    """The calls of the project's Python tools in a text: (tool path, [flag name])."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"\\\n[#\s]*", " ", text)  # join continued lines
    for line in text.splitlines():
        found = re.search(r"((?:tools|export)/\w+\.py)(.*)", line)
        if found:
            yield found[1], re.findall(r"(?<=\s)--(\w+)", found[2])


def known_flags(tool):
    """The flags that a tool defines, read from its source."""
    text = tool.read_text(encoding="utf-8")
    names = {"flagfile", "help", "helpfull", "verbosity"}
    names |= set(re.findall(r"^flags\.DEFINE_\w+\(\s*\"(\w+)\"", text, re.MULTILINE))
    return names | set(config_lib.all_fields() if "define_config_flags()" in text else ())


@pytest.mark.parametrize("path", [path for path in TEXTS if path.exists()], ids=relative)
def test_commands_in_texts_exist(path):
    for tool, names in commands(path):
        assert (ROOT / tool).exists(), f"{relative(path)} names {tool}, which does not exist"
        unknown = set(names) - known_flags(ROOT / tool)
        assert not unknown, f"{relative(path)}: {tool} has no flag {', '.join(sorted(unknown))}"


def test_json_of_another_version_is_read():
    config = config_lib.Config().replace(train_min_sides=(64, 96), train_max_side=128)
    assert config_lib.from_json(config.to_json()) == config
    content = json.loads(config.to_json())
    del content["data"]["random_flip"]
    content["data"]["gone_since"] = 3
    assert config_lib.from_json(json.dumps(content)) == config


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"data": 1}', "[" * 100000, b'{"data": {"x": "\xe4"}}', bytes(9)]
)
def test_broken_json_of_a_config_is_refused(text):
    with pytest.raises(ValueError, match="not the JSON of a config"):
        config_lib.from_json(text)
