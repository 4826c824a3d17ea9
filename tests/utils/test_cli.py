"""What a user reads who has typed a flag wrongly."""

import os

import pytest
from absl import flags

from pfpn_tf.utils import cli
from pfpn_tf.utils.errors import UserError
from pfpn_tf.weights import zoo
from tests.processes import run_code

CODE = """
from pfpn_tf.utils import cli
from pfpn_tf import flags
from absl import flags as absl_flags
absl_flags.DEFINE_enum("what", "", ["", "a", "b"], "")
absl_flags.DEFINE_integer("number", 1, "", lower_bound=1)
flags.define_config_flags()
cli.command(lambda: print("started"))()
"""


def call(*arguments):
    done = run_code(CODE, *arguments)
    assert done.returncode == (2 if done.stderr else 0), done.stderr
    return done.stderr or done.stdout


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--lerning_rate=1", "Unknown flag --lerning_rate. Did you mean --learning_rate?"),
        ("--nostatic_shaps", "Unknown flag --nostatic_shaps. Did you mean --static_shapes?"),
        ("--train_steps=many", "--train_steps=many must be a whole number. The default is 90000."),
        (
            "--static_shapes=perhaps",
            "--static_shapes=perhaps must be true or false. The default is False.",
        ),
        ("--what=c", "--what=c must be one of empty, a, b. The default is ''."),
        ("--number=0", "--number=0 must be a whole number from 1 on. The default is 1."),
    ],
)
def test_a_wrong_flag(argument, message):
    assert call(argument).startswith(f"Error: {message}\n")


def test_a_wrong_flag_in_a_flagfile_is_named_with_its_line(tmp_path):
    inner, outer, typed = (tmp_path / f"{name}.flags" for name in ("inner", "outer", "typed"))
    inner.write_text("# sizes\n--seed=1\n  --lerning_rate=0.1\n")
    outer.write_text(f"--flagfile={inner}\n--train_steps=5\n")
    typed.write_text("// first half\n--train_steps=5\n--train_steps=5.5\n")
    assert call(f"--flagfile={outer}").startswith(
        f"Error: {inner}:3: Unknown flag --lerning_rate. Did you mean --learning_rate?\n"
    )
    assert call("--flagfile", str(typed)).startswith(
        f"Error: {typed}:3: --train_steps=5.5 must be a whole number."
    )
    inner.write_text("# a recipe\ntask: panoptic\n")
    assert call(f"--flagfile={outer}").startswith(
        f"Error: {inner}:2: Unexpected line 'task: panoptic'. A flagfile has a --flag=value"
    )
    inner.write_text("\ufeff--learning_rate=0.1\n", encoding="utf-8")
    assert call(f"--flagfile={outer}") == "started\n"


@pytest.mark.parametrize(
    "error, code, message",
    [
        ("UserError('--x must be y.')", 2, "Error: --x must be y.\n"),
        (
            "FileNotFoundError(errno.ENOENT, 'No such file', 'a.txt')",
            2,
            "Error: a.txt: No such file.\n",
        ),
        ("OSError('The server is gone.')", 1, "Error: The server is gone.\n"),
        (
            "__import__('tensorflow').errors.DataLossError(None, None, 'corrupted record at 12')",
            2,
            "Error: A TFRecord or another file that was read is damaged (corrupted record at 12)."
            " Convert the split again, or copy its files again.\n",
        ),
    ],
)
def test_what_a_user_can_mend_is_one_line(error, code, message):
    done = ending_with(error)
    assert (done.returncode, done.stderr) == (code, message)


@pytest.mark.parametrize(
    "error", ["ValueError('Keras')", "OSError(errno.ESTALE, 'Stale file handle', 'a.txt')"]
)
def test_any_other_error_keeps_its_traceback(error):
    done = ending_with(error)
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "Error: " not in done.stderr.splitlines()[0]


def test_sigterm_leaves_no_file_half_written(tmp_path):
    done = ending_with(f"half_written({str(tmp_path / 'a.txt')!r})")
    assert (done.returncode, done.stderr) == (143, "") and not os.listdir(tmp_path)


def ending_with(error):
    code = f"""
import errno, signal
from pfpn_tf.utils import cli, files
from pfpn_tf.utils.errors import UserError

def half_written(path):
    with files.atomic_write(path) as f:
        f.write("half")
        signal.raise_signal(signal.SIGTERM)

@cli.command
def main():
    raise {error}

main()
"""
    return run_code(code)


def test_a_warning_is_shown_like_an_error():
    code = "from pfpn_tf.utils import cli\ncli.command(lambda: cli.logging.warning('%d odd', 2))()"
    done = run_code(code)
    assert done.stderr == "Warning: 2 odd\n"


@pytest.mark.parametrize("flag", ["weights", "init_weights"])
def test_names_of_published_weights_are_no_remote_paths(flag):
    values = flags.FlagValues()
    flags.DEFINE_string(flag, "", "", flag_values=values)
    for model in zoo.MODELS:
        values(["", f"--{flag}={model.full_name}"])
        cli._refuse_remote_paths(values)
    values(["", f"--{flag}=gs://bucket/model.pth"])
    with pytest.raises(UserError, match=rf"--{flag}=gs://bucket/model.pth: only local paths"):
        cli._refuse_remote_paths(values)
