"""Where plugins come from: modules of this package, entry points, paths in the cluster file.

Each source yields a `Found`: the plugin object with its name, version and origin. Whatever foreign code
raises while it is imported becomes a PluginError that names the plugin, its origin and the cause.

A path is imported like any module, once in a process, under a name of its own, so that it shadows nothing
and a package's relative imports work.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2s
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType, TracebackType

from protego_cli import __version__
from protego_cli.errors import PluginError

GROUP = "protego"
"""The entry point group that third-party distributions join."""

BUILT_IN = "built-in"


@dataclass(frozen=True)
class Found:
    """A plugin that is loaded but not yet registered."""

    plugin: object  # a module, or whatever object an entry point names
    name: str
    version: str | None
    source: str  # "built-in", "entry point of DISTRIBUTION", or a path


class Blame:
    """Foreign code runs inside: any error of its is reported as a PluginError that names the plugin.

    `SystemExit` is one too, or a plugin that runs as a script would end Protego without a word.
    """

    def __init__(self, name: str, source: str, doing: str) -> None:
        self._plugin = f"plugin {name!r} ({source}) failed while {doing}"

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, (Exception, SystemExit)):
            cause = " ".join(f"{type(error).__name__}: {error}".split())  # one line, whatever it was
            raise PluginError(f"{self._plugin}: {cause}") from error


def built_in(modules: Sequence[str]) -> Iterator[Found]:
    """Modules of `protego_cli.plugins`; their plugin names start with "protego.", the rest are free."""
    for module in modules:
        name = f"protego.{module}"
        with Blame(name, BUILT_IN, "loading"):
            plugin = importlib.import_module(f"protego_cli.plugins.{module}")
        yield Found(plugin, name, __version__, BUILT_IN)


def installed() -> Iterator[Found]:
    """What distributions registered under the group "protego", in order of name."""
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value)):
        source = f"entry point of {entry.dist.name}" if entry.dist else f"entry point {entry.value}"
        with Blame(entry.name, source, "loading"):
            plugin = entry.load()
        yield Found(plugin, entry.name, _entry_version(entry), source)


def from_paths(paths: Sequence[Path]) -> Iterator[Found]:
    """Python files, and directories that are packages; the plugin is named after the file or directory."""
    for path in paths:
        origin, package = _origin(path)
        with Blame(path.stem, str(path), "loading"):
            module = _import_path(path, origin, package=package)
            version = getattr(module, "__version__", None)
        yield Found(module, path.stem, version if isinstance(version, str) else None, str(path))


def _entry_version(entry: EntryPoint) -> str | None:
    return entry.dist.version if entry.dist else None


def _origin(path: Path) -> tuple[Path, bool]:
    """The file to run, and whether it is a package's; PluginError when the path is neither."""
    if path.is_dir():
        origin = path / "__init__.py"
        if not origin.is_file():
            raise PluginError(f"plugin path {path} is a directory without __init__.py, not a Python package")
        return origin, True
    if not path.is_file():
        raise PluginError(f"plugin path {path} does not exist; correct plugins.paths in the cluster file")
    if path.suffix != ".py":
        raise PluginError(f"plugin path {path} is neither a .py file nor a package directory")
    return path, False


def _import_path(path: Path, origin: Path, *, package: bool) -> ModuleType:
    digest = blake2s(str(path.resolve()).encode(), digest_size=4).hexdigest()
    name = f"protego_plugin_{path.stem}_{digest}"
    if (loaded := sys.modules.get(name)) is not None:
        return loaded
    spec = importlib.util.spec_from_file_location(
        name, origin, submodule_search_locations=[str(path)] if package else None
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"no import machinery for {origin}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # first, as for any import: dataclasses and relative imports look it up
    with ExitStack() as failed:
        failed.callback(sys.modules.pop, name)
        spec.loader.exec_module(module)
        failed.pop_all()
    return module
