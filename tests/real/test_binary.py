"""The single executable, made by `make binary`, where no Python is to be found."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BINARY = ROOT / "dist" / "protego"

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", autouse=True)
def binary() -> None:
    subprocess.run(["make", "--silent", "binary", f"VENV={sys.prefix}"], cwd=ROOT, check=True)


def without_python(command: str) -> str:
    """Run a shell command in a mount namespace that hides every Python, and return what it prints."""
    hidden = {sys.prefix, sys.base_prefix, *map(str, Path("/usr/lib").glob("python3*"))}
    script = "".join(f"mount -t tmpfs none {shlex.quote(path)}; " for path in sorted(hidden, reverse=True))
    script += f"exec env -i PATH=/usr/bin:/bin HOME=/tmp {command}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_cluster_runs_from_one_file() -> None:
    arguments = "local --json --headless --duration 2 --tenants 2 --migrations 4"
    receipt = json.loads(without_python(f"{BINARY} {arguments}"))
    assert receipt["migrations"] == 4
    assert receipt["received"] == receipt["sent"] > 0


def test_a_plugin_from_a_path_loads_into_it(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from protego_cli.hookspecs import hookimpl\n"
        "@hookimpl\n"
        "def protego_packing_policies():\n"
        "    return []\n"
    )
    cluster = tmp_path / "cluster.toml"
    cluster.write_text(f'[plugins]\npaths = ["{plugin}"]\n')
    assert str(plugin) in without_python(f"{BINARY} plugins -c {cluster}")
