"""How the project is run: what the tests' own configuration forbids in CI, and what make says."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFTEST = ROOT / "tests/conftest.py"

PASSES = "def test_passes():\n    pass\n"
SKIPS = "import pytest\ndef test_skips():\n    pytest.skip('today')\n"
SKIPS_ALL = "import pytest\npytest.skip('today', allow_module_level=True)\n"
XFAILS = "import pytest\n@pytest.mark.xfail\ndef test_xfails():\n    assert False\n"
XPASSES = "import pytest\n@pytest.mark.xfail\ndef test_xpasses():\n    pass\n"
ROOTED = "import pytest\n@pytest.mark.root\ndef test_rooted():\n    pass\n"


def inner(directory: Path, content: str, *, ci: bool, tools: bool = True) -> tuple[int, str]:
    """Run pytest with our conftest on one small file."""
    conftest = CONFTEST.read_text()
    if not tools:
        conftest = re.sub(r"^TOOLS = .*$", 'TOOLS = ("no-such-tool",)', conftest, flags=re.MULTILINE)
    else:
        conftest = re.sub(r"^TOOLS = .*$", "TOOLS = ()", conftest, flags=re.MULTILINE)
    (directory / "conftest.py").write_text(conftest)
    (directory / "pytest.ini").write_text("[pytest]\nmarkers =\n  root: needs root\n")
    (directory / "test_inner.py").write_text(content)
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", str(directory)],
        env=environment | ({"CI": "true"} if ci else {}),
        cwd=directory, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_ci_forbids_skips_and_xfails(tmp_path: Path) -> None:
    code, output = inner(tmp_path, PASSES + SKIPS + XFAILS + XPASSES, ci=True)
    assert code == 1, output
    assert "3 failed, 1 passed" in output
    assert output.count("not allowed in CI") >= 3


def test_ci_forbids_skipping_a_module(tmp_path: Path) -> None:
    code, output = inner(tmp_path, SKIPS_ALL, ci=True)
    assert code == 2, output
    assert "not allowed in CI: skipped" in output


def test_elsewhere_what_cannot_run_is_left_out_visibly(tmp_path: Path) -> None:
    code, output = inner(tmp_path, PASSES + SKIPS + ROOTED, ci=False, tools=False)
    assert code == 0, output
    assert "1 passed, 1 skipped, 1 deselected" in output
    assert "1 tests against a real peer deselected: no" in output


def test_missing_tools_are_an_error_in_ci(tmp_path: Path) -> None:
    code, output = inner(tmp_path, PASSES + ROOTED, ci=True, tools=False)
    assert code == 4
    assert "CI runs the tests marked root, but: no" in output


def test_make_names_the_python_it_needs(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    old = tmp_path / "python2"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = subprocess.run(
        ["make", f"PYTHON={old}", "local"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "Protego needs Python 3.11 or later" in done.stderr
    assert "make PYTHON=python3.13 local" in done.stderr


def test_the_ci_script_can_be_run() -> None:
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & stat.S_IXUSR
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert script.read_text().rstrip().endswith("exec make test")
