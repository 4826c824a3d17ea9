"""The command-line tools and other programs as processes, as a user starts them."""

import json
import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def environment(**variables):
    """Without what pytest and these tests set for themselves, but with the choice of kernels."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name == "TF_ENABLE_ONEDNN_OPTS" or not name.startswith(("TF_", "PYTEST"))
    }
    return {**kept, "PYTHONPATH": str(ROOT), **variables}


def call(script, *arguments, expect=0, cwd=ROOT):
    """Runs a tool to its end, which must be the exit code `expect`, and returns what it printed."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True)
    assert done.returncode == expect, done.stderr
    assert "Traceback" not in done.stderr
    return done


def start(*arguments, log, **variables):
    """Starts Python with these arguments; what it prints is appended to the file `log`."""
    command = [sys.executable, *map(str, arguments)]
    with open(log, "a", encoding="utf-8") as f:
        return subprocess.Popen(command, cwd=ROOT, env=environment(**variables), stdout=f, stderr=f)


def run_code(code, *arguments):
    """Runs Python code and returns the process."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)


def cluster_of_workers(count):
    """TF_CONFIG of each of some workers on free ports of this machine."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    cluster = {"worker": [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]}
    for s in sockets:
        s.close()
    tasks = [{"type": "worker", "index": index} for index in range(count)]
    return [json.dumps({"cluster": cluster, "task": task}) for task in tasks]
