"""How the tests run: what needs root, what continuous integration forbids, and Hypothesis.

- Tests marked `root` need root and the tools below, those marked `strongswan6` the peer that
  `make strongswan-6` gets. Elsewhere they are deselected, and a line says so.
- With CI set, nothing may be left out: a missing tool ends the run, a skip or an xfail is a failure.
- Hypothesis is derandomised, so every run sees the same examples; HYPOTHESIS_PROFILE=hunt looks further.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

from tests.support.strongswan import NEWER

CI = os.environ.get("CI", "").lower() in ("1", "true")
TOOLS = ("ip", "bridge", "unshare", "nft", "ethtool", "swanctl", "/usr/lib/ipsec/charon")
DESELECTED = pytest.StashKey[list[str]]()

settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile(
    "hunt", max_examples=20_000, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def _lacking() -> str:
    """Why tests marked `root` cannot run here, or nothing."""
    if os.geteuid():
        return "not root"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"{', '.join(missing)} not installed (see .ci/run)" if missing else ""


def _lacking_strongswan6() -> str:
    return "" if NEWER.is_dir() else "no strongSwan 6 (make strongswan-6)"


NEEDS = {"root": _lacking, "strongswan6": _lacking_strongswan6}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    lines = config.stash.setdefault(DESELECTED, [])
    for marker, lacks in NEEDS.items():
        marked = [item for item in items if item.get_closest_marker(marker)]
        lacking = lacks() if marked else ""
        if not lacking:
            continue
        if CI:
            raise pytest.UsageError(f"CI runs the tests marked {marker}, but: {lacking}")
        items[:] = [item for item in items if item not in marked]
        config.hook.pytest_deselected(items=marked)
        lines.append(f"{len(marked)} tests against a real peer deselected: {lacking}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(DESELECTED, []):
        terminalreporter.write_line(line, yellow=True)


def _forbid(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Nothing is skipped or expected to fail in CI."""
    expected = getattr(report, "wasxfail", None)
    if report.skipped or expected is not None:
        reason = f"xfail: {expected}" if expected is not None else f"skipped: {report.longrepr}"
        report.outcome = "failed"
        report.longrepr = f"not allowed in CI: {reason}"
        if expected is not None:
            del report.wasxfail


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if CI:
        _forbid(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if CI:
        _forbid(report)
    return report
