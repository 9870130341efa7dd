"""The architecture as rules on the source: who imports whom, and what stands nowhere.

The order of the layers is read from the docstring of `protego_cli`, so that there is one statement of it.
Imports inside functions count; those under `if TYPE_CHECKING:` do not.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import protego_cli

PACKAGE = Path(protego_cli.__file__).parent
ROOT = PACKAGE.name
TESTS = Path(__file__).parent
SOURCES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
MODULES = frozenset(SOURCES)
MAX_LINES = 600

SANS_IO = {
    # Third-party modules that each may import; of the standard library all but IMPURE.
    "wire": {"msgspec"},
    "crypto": {"cryptography"},
    "ike": {"msgspec", "cryptography.exceptions"},
    "esp": {"msgspec", "cryptography.exceptions"},
}
IMPURE = {
    *("socket", "ssl", "select", "selectors", "fcntl", "signal", "subprocess", "multiprocessing"),
    *("trio", "asyncio", "threading", "concurrent", "time", "datetime", "sched"),
    *("os", "sys", "io", "pathlib", "tempfile", "shutil", "random", "secrets", "uuid"),
}
# Where code of third parties runs for a running gateway, so whatever it raises has to be caught; and where it
# is raised again by another task, whose it is.
WIDE_EXCEPT = {
    "protego_cli.control.packing.placement": 1,
    "protego_cli.control.pools.roster": 1,
    "protego_cli.net.attend": 1,
}


# ---- the layers


def ranks(statement: str) -> dict[str, int]:
    """A rank for each part of "a, b -> c -> d | e": siblings joined by "|" share one."""
    rank: dict[str, int] = {}
    for layer in (part for group in statement.split("->") for part in group.split(",")):
        level = len(set(rank.values()))
        rank |= dict.fromkeys((name.strip() for name in layer.split("|")), level)
    return rank


def stated_layers() -> dict[str, int]:
    text = " ".join((protego_cli.__doc__ or "").split())
    found = re.search(r"enforces it\): (.+? -> cli)\b", text)
    assert found is not None, "the docstring of protego_cli states no layers"
    return ranks(found[1])


LAYERS = stated_layers()


def layer(module: str) -> str | None:
    """The layer of a module of ours; None for the package itself and `__main__`, which have none."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] != "__main__" else None


def imports(
    tree: ast.AST, module: str, *, package: bool, known: frozenset[str] = MODULES
) -> Iterator[tuple[int, str]]:
    """(line, full name) of every module that is imported when the code runs."""
    for node in runtime_nodes(tree):
        match node:
            case ast.Import():
                yield from ((node.lineno, alias.name) for alias in node.names)
            case ast.ImportFrom():
                base = importlib.util.resolve_name(
                    "." * node.level + (node.module or ""), module if package else module.rpartition(".")[0]
                )
                for alias in node.names:
                    full = f"{base}.{alias.name}"
                    yield node.lineno, full if full in known else base


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under `if TYPE_CHECKING:`."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)


def wrong_direction(module: str, imported: str) -> bool:
    """Whether the import goes to a later layer or to a sibling."""
    mine, theirs = layer(module), layer(imported)
    if imported.split(".")[0] != ROOT or mine is None or theirs is None or mine == theirs:
        return False
    return LAYERS[theirs] >= LAYERS[mine]


def parsed(module: str) -> ast.Module:
    return ast.parse(SOURCES[module].read_text(encoding="utf-8"))


def imports_of(module: str) -> list[tuple[int, str]]:
    return list(imports(parsed(module), module, package=SOURCES[module].name == "__init__.py"))


IMPORTS = {module: imports_of(module) for module in SOURCES}


def test_every_module_belongs_to_a_stated_layer() -> None:
    assert {layer(module) for module in SOURCES} - {None} == set(LAYERS)


def test_imports_go_to_earlier_layers_only() -> None:
    wrong = [
        f"{module}:{line} imports {imported}"
        for module, found in IMPORTS.items()
        for line, imported in found
        if wrong_direction(module, imported)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", SANS_IO)
def test_sans_io_code_imports_neither_clock_nor_network_nor_randomness(name: str) -> None:
    wrong = [
        f"{module}:{line} imports {imported}"
        for module, found in IMPORTS.items()
        if layer(module) == name
        for line, imported in found
        if not sans_io_may_import(name, imported)
    ]
    assert not wrong, "\n".join(wrong)


def sans_io_may_import(name: str, imported: str) -> bool:
    top = imported.split(".")[0]
    if top == ROOT:
        return True  # the order of the layers is another test's matter
    if top in sys.stdlib_module_names:
        return top not in IMPURE
    return any(imported == allowed or imported.startswith(f"{allowed}.") for allowed in SANS_IO[name])


def importers(wanted: str) -> set[str]:
    return {
        module
        for module, found in IMPORTS.items()
        if any(imported == wanted or imported.startswith(f"{wanted}.") for _, imported in found)
    }


def test_data_nodes_and_help_do_without_numpy() -> None:
    program = """
import sys
import protego_cli.cli.app, protego_cli.roles.gen, protego_cli.roles.gin, protego_cli.roles.gpn
from protego_cli.plugins.manager import load_plugins
load_plugins().packing_policies()
sys.exit("numpy" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_pluggy_is_known_to_the_hooks_and_the_manager_only() -> None:
    assert importers("pluggy") == {"protego_cli.hookspecs", "protego_cli.plugins.manager"}


def test_modules_are_imported_by_name_only_where_plugins_or_a_role_are_loaded() -> None:
    assert importers("importlib") <= {"protego_cli.plugins.discovery", "protego_cli.cli.serve"}


def test_only_the_manager_loads_plugins() -> None:
    own = {module for module in SOURCES if layer(module) == "plugins"} - {"protego_cli.plugins"}
    outside = {
        f"{module}:{line} imports {imported}"
        for module, found in IMPORTS.items()
        if layer(module) != "plugins"
        for line, imported in found
        if imported in own - {"protego_cli.plugins.manager"}
    }
    assert not outside
    assert importers("protego_cli.plugins.discovery") == {"protego_cli.plugins.manager"}


# ---- what stands nowhere


def asserts(tree: ast.AST) -> list[int]:
    return [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]


def wide_excepts(tree: ast.AST) -> list[int]:
    return [
        node.lineno for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and is_wide(node.type)
    ]


def is_wide(caught: ast.expr | None) -> bool:
    match caught:
        case None:
            return True
        case ast.Tuple():
            return any(is_wide(each) for each in caught.elts)
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name in ("Exception", "BaseException")
    return False


def test_no_assert_guards_anything() -> None:
    assert not [f"{module}:{line}" for module in SOURCES for line in asserts(parsed(module))]


def test_nothing_is_caught_wholesale() -> None:
    found = {module: lines for module in SOURCES if (lines := wide_excepts(parsed(module)))}
    assert {module: len(lines) for module, lines in found.items()} == WIDE_EXCEPT, found


def test_no_file_is_long() -> None:
    lengths = {path: path.read_bytes().count(b"\n") for path in [*SOURCES.values(), *TESTS.rglob("*.py")]}
    assert not {str(path): length for path, length in lengths.items() if length > MAX_LINES}


# ---- the rules themselves


def test_ranks_follow_arrows_and_commas_and_bars_join_siblings() -> None:
    assert ranks("a, b -> c -> d | e -> f") == {"a": 0, "b": 1, "c": 2, "d": 3, "e": 3, "f": 4}
    assert LAYERS["ike"] == LAYERS["esp"]
    assert (
        LAYERS["errors"] < LAYERS["wire"] < LAYERS["crypto"] < LAYERS["ike"] < LAYERS["net"] < LAYERS["cli"]
    )


@pytest.mark.parametrize(
    ("module", "imported", "wrong"),
    [
        ("protego_cli.wire.reader", "protego_cli.errors", False),
        ("protego_cli.wire.reader", "protego_cli.crypto.mac", True),
        ("protego_cli.ike.engine", "protego_cli.esp.sa", True),
        ("protego_cli.esp.sa", "protego_cli.ike.events", True),
        ("protego_cli.ike.engine", "protego_cli.ike.sa", False),
        ("protego_cli.lab.main", "protego_cli.roles.gmn", False),
        ("protego_cli.lab.main", "protego_cli.cli", True),
        ("protego_cli.__main__", "protego_cli.cli.app", False),
        ("protego_cli.cli.app", "protego_cli", False),
        ("protego_cli.wire.reader", "struct", False),
    ],
)
def test_directions(module: str, imported: str, wrong: bool) -> None:
    assert wrong_direction(module, imported) is wrong


def test_imports_are_found_wherever_they_hide() -> None:
    source = """
import socket
from protego_cli import net, __version__
from . import keys
from .exchanges.auth import build
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import trio
else:
    import random
def late():
    from protego_cli.esp.sa import InboundSa
"""
    known = frozenset({"protego_cli.net", "protego_cli.ike.keys", "protego_cli.ike.exchanges.auth"})
    found = imports(ast.parse(source), "protego_cli.ike.engine", package=False, known=known)
    assert sorted(found) == [
        (2, "socket"),
        (3, "protego_cli"),
        (3, "protego_cli.net"),
        (4, "protego_cli.ike.keys"),
        (5, "protego_cli.ike.exchanges.auth"),
        (6, "typing"),
        (10, "random"),
        (12, "protego_cli.esp.sa"),
    ]


@pytest.mark.parametrize(
    ("name", "imported", "allowed"),
    [
        ("wire", "struct", True),
        ("wire", "cryptography.exceptions", False),
        ("crypto", "cryptography.hazmat.primitives.hmac", True),
        ("ike", "cryptography.exceptions", True),
        ("ike", "cryptography.hazmat.primitives.hmac", False),
        ("ike", "time", False),
        ("esp", "trio", False),
        ("esp", "os.path", False),
        ("esp", "numpy", False),
        ("esp", "protego_cli.errors", True),
    ],
)
def test_purity(name: str, imported: str, allowed: bool) -> None:
    assert sans_io_may_import(name, imported) is allowed


def test_forbidden_statements_are_seen() -> None:
    assert asserts(ast.parse("def f():\n    assert True")) == [2]
    for handler in (
        "",
        " Exception",
        " BaseException as e",
        " (ValueError, Exception)",
        " builtins.Exception",
    ):
        assert wide_excepts(ast.parse(f"try:\n    f()\nexcept{handler}:\n    pass")) == [3]
    assert not wide_excepts(ast.parse("try:\n    f()\nexcept (ValueError, OSError):\n    pass"))


def test_what_several_tests_need_is_in_their_support() -> None:
    tests = Path(__file__).parent
    borrowed = [
        f"{file.relative_to(tests)}:{number}"
        for file in sorted(tests.rglob("*.py"))
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if re.match(r"(from|import) tests\.(\w+\.)?test_", line)
    ]
    assert not borrowed, "imported from a test module; move it to tests/support"
