"""Every hook has a docstring, a section in docs/plugins.md, and a test with a third party's file."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from protego_cli import hookspecs

HERE = Path(__file__).parent
PAGE = (HERE.parent / "docs/plugins.md").read_text(encoding="utf-8")
TESTS = ast.parse((HERE / "test_plugins_hooks.py").read_text(encoding="utf-8"))
SPECIFIED = {
    name: function
    for name, function in inspect.getmembers(hookspecs, inspect.isfunction)
    if hasattr(function, f"{hookspecs.PROJECT}_spec")
}

each_hook = pytest.mark.parametrize("hook", sorted(SPECIFIED))


def sections(page: str) -> dict[str, str]:
    """The text below each heading that is a hook's name, up to the next heading."""
    found = re.findall(r"^### `(\w+)`\n(.*?)(?=^#{2,3} |\Z)", page, re.MULTILINE | re.DOTALL)
    return {name: text.strip() for name, text in found}


def exercised(tests: ast.Module) -> Iterator[str]:
    """Hooks of test functions that call `load`: named in the function or in a constant that it uses."""
    constants = {
        target.id: ast.unparse(node.value)
        for node in tests.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for function in tests.body:
        if not isinstance(function, ast.FunctionDef) or not function.name.startswith("test_"):
            continue
        nodes = list(ast.walk(function))
        names = {node.id for node in nodes if isinstance(node, ast.Name)}
        if "load" in names:
            text = ast.unparse(function) + "".join(constants.get(name, "") for name in names)
            yield from re.findall(r"\bprotego_\w+", text)


def test_the_specifications_are_found() -> None:
    assert set(SPECIFIED) >= {
        "protego_crypto_suites",
        "protego_packing_policies",
        "protego_provisioners",
        "protego_state_stores",
        "protego_steering_backends",
    }


@each_hook
def test_every_hook_has_a_docstring(hook: str) -> None:
    assert len(inspect.getdoc(SPECIFIED[hook]) or "") > 40


@each_hook
def test_every_hook_has_a_section_in_the_documentation(hook: str) -> None:
    assert len(sections(PAGE).get(hook, "")) > 200


@each_hook
def test_every_hook_has_a_test(hook: str) -> None:
    assert hook in set(exercised(TESTS))


def test_no_hook_is_documented_that_does_not_exist() -> None:
    assert set(sections(PAGE)) == set(SPECIFIED)


def test_the_checks_can_fail() -> None:
    assert sections("### `protego_a`\ntext\n### `protego_b`\n## Other\nmore") == {
        "protego_a": "text",
        "protego_b": "",
    }
    tests = [
        'A = "protego_x"',
        "def test_named(): protego_y",
        "def test_loaded(): load(A)",
        "def helper(): load(protego_z)",
    ]
    assert list(exercised(ast.parse("\n".join(tests)))) == ["protego_x"]
