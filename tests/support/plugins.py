"""Third-party plugins for tests: files on disk, and distributions that look installed."""

from __future__ import annotations

import textwrap
from pathlib import Path

from protego_cli.config.model import PluginsConfig
from protego_cli.plugins.manager import Plugins, load_plugins


def write(path: Path, source: str) -> Path:
    """A file with the dedented source; its directories are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(source), encoding="utf-8")
    return path


def load(*paths: Path) -> Plugins:
    return load_plugins(PluginsConfig(paths=paths))


def install(site: Path, distribution: str, version: str, entry_points: dict[str, str]) -> None:
    """Metadata of a distribution in a directory on `sys.path`, with entry points in the group "protego"."""
    metadata = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
    write(metadata / "METADATA", f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    lines = "".join(f"{name} = {value}\n" for name, value in entry_points.items())
    write(metadata / "entry_points.txt", f"[protego]\n{lines}")
