"""Loading plugins: where they come from, what `protego plugins` lists, and whose fault it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from protego_cli import __version__
from protego_cli.errors import Exit, PluginError
from protego_cli.plugins.manager import PluginInfo, load_plugins
from tests.support.plugins import install, load, write

BUILT_IN = [
    PluginInfo("protego.crypto_suites", __version__, "built-in", ("protego_crypto_suites",)),
    PluginInfo("protego.packing_policies", __version__, "built-in", ("protego_packing_policies",)),
    PluginInfo("protego.provisioners", __version__, "built-in", ("protego_provisioners",)),
    PluginInfo("protego.state_stores", __version__, "built-in", ("protego_state_stores",)),
    PluginInfo("protego.steering_backends", __version__, "built-in", ("protego_steering_backends",)),
]
POLICY = """
    from protego_cli.hookspecs import hookimpl

    class Policy:
        name = "NAME"
        def place(self, tunnel, view):
            return None
        def plan(self, view):
            return []

    @hookimpl
    def protego_packing_policies():
        return [Policy()]
"""
HOOK = ("protego_packing_policies",)


def policy(name: str) -> str:
    return POLICY.replace("NAME", name)


def refusal(*paths: Path) -> str:
    """The text of the PluginError that loading these paths raises."""
    with pytest.raises(PluginError) as refused:
        load(*paths)
    assert refused.value.exit_code == Exit.USAGE
    assert "\n" not in str(refused.value)
    return str(refused.value)


# ---- where plugins come from


def test_the_built_ins_are_ordinary_plugins() -> None:
    plugins = load_plugins()
    assert plugins.listing()[: len(BUILT_IN)] == BUILT_IN
    assert "aes256gcm16" in plugins.registry().keywords()
    assert "spread" in plugins.packing_policies()
    assert "mux" in plugins.steering_backends()


def test_a_file_is_named_after_itself(tmp_path: Path) -> None:
    path = write(tmp_path / "my-policy.py", '    __version__ = "3.1"\n' + policy("mine"))
    plugins = load(path)
    assert plugins.listing()[-1] == PluginInfo("my-policy", "3.1", str(path), HOOK)
    assert "mine" in plugins.packing_policies()


def test_a_package_may_import_its_own_modules(tmp_path: Path) -> None:
    write(tmp_path / "acme/policies.py", policy("inner"))
    write(tmp_path / "acme/__init__.py", "from .policies import protego_packing_policies\n")
    plugins = load(tmp_path / "acme")
    assert plugins.listing()[-1] == PluginInfo("acme", None, str(tmp_path / "acme"), HOOK)
    assert "inner" in plugins.packing_policies()


def test_dataclasses_work_in_a_plugin(tmp_path: Path) -> None:
    """They look their module up in `sys.modules` while it is being run."""
    source = """
        from __future__ import annotations
        from dataclasses import dataclass
        from typing import ClassVar
        from protego_cli.hookspecs import hookimpl

        @dataclass
        class Policy:
            name: str
            known: ClassVar[int] = 0
            def place(self, tunnel, view):
                return None
            def plan(self, view):
                return []

        @hookimpl
        def protego_packing_policies():
            return [Policy("data")]
    """
    assert "data" in load(write(tmp_path / "data.py", source)).packing_policies()


def test_a_plugin_named_like_a_library_shadows_nothing(tmp_path: Path) -> None:
    load(write(tmp_path / "json.py", policy("json")))
    import json

    assert json.loads("[1]") == [1]


def test_an_installed_distribution_joins_by_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "installed_policy.py", policy("installed"))
    source = """
        from protego_cli.hookspecs import hookimpl

        class Plugin:
            @hookimpl
            def protego_packing_policies(self):
                return []

        plugin = Plugin()
    """
    write(tmp_path / "installed_object.py", source)
    install(tmp_path, "acme-plugins", "7.0", {"zeta": "installed_policy", "alpha": "installed_object:plugin"})
    monkeypatch.syspath_prepend(tmp_path)
    plugins = load_plugins()
    assert plugins.listing() == [
        *BUILT_IN,
        PluginInfo("alpha", "7.0", "entry point of acme-plugins", HOOK),
        PluginInfo("zeta", "7.0", "entry point of acme-plugins", HOOK),
    ]
    assert "installed" in plugins.packing_policies()


def test_what_is_handed_back_can_be_changed_without_harm() -> None:
    plugins = load_plugins()
    plugins.packing_policies().clear()
    plugins.listing().clear()
    assert plugins.packing_policies()
    assert plugins.listing()


# ---- names claimed twice


def test_two_plugins_of_one_name(tmp_path: Path) -> None:
    one, two = (write(tmp_path / place / "acme.py", policy(place)) for place in ("a", "b"))
    assert refusal(one, two) == (
        f"two plugins have the name 'acme': one is {one}, the other {two}; rename or remove one of them"
    )


def test_one_path_named_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "acme.py", policy("acme"))
    assert "two plugins have the name 'acme'" in refusal(path, path)


def test_one_object_under_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "twice_named.py", policy("twice"))
    install(tmp_path, "acme", "1", {"first": "twice_named", "second": "twice_named"})
    monkeypatch.syspath_prepend(tmp_path)
    text = refusal()
    assert "plugins 'first' (entry point of acme) and 'second' (entry point of acme) are one object" in text


@pytest.mark.parametrize(("name", "owner"), [("spread", "protego.packing_policies"), ("same", "a")])
def test_two_policies_of_one_name(tmp_path: Path, name: str, owner: str) -> None:
    paths = [write(tmp_path / f"{stem}.py", policy(name)) for stem in ("a", "b")]
    second = "a" if owner != "a" else "b"
    assert f"plugins {owner!r} and {second!r} both provide the packing policy {name!r}" in refusal(*paths)


def test_two_backends_of_one_name(tmp_path: Path) -> None:
    source = """
        from protego_cli.hookspecs import hookimpl
        from protego_cli.plugins.steering_backends import Mux

        @hookimpl
        def protego_steering_backends():
            return [Mux()]
    """
    text = refusal(write(tmp_path / "again.py", source))
    assert "plugins 'protego.steering_backends' and 'again' both provide the steering backend 'mux'" in text


def test_two_algorithms_of_one_keyword(tmp_path: Path) -> None:
    source = """
        from protego_cli.crypto.builtin import ALGORITHMS
        from protego_cli.hookspecs import hookimpl

        @hookimpl
        def protego_crypto_suites():
            return ALGORITHMS[:1]
    """
    text = refusal(write(tmp_path / "again.py", source))
    assert "plugins 'protego.crypto_suites' and 'again' both provide the algorithm 'aes128gcm16'" in text


# ---- plugins that fail


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (
            "import no_such_module",
            "failed while loading: ModuleNotFoundError: No module named 'no_such_module'",
        ),
        ("def broken(:", "failed while loading: SyntaxError: invalid syntax"),
        ("raise OSError('disk\\non fire')", "failed while loading: OSError: disk on fire"),
        ("raise SystemExit(0)", "failed while loading: SystemExit: 0"),
        ("pass", "implements no hook; known are protego_crypto_suites, protego_packing_policies, "),
        (
            "@hookimpl\ndef protego_packing_policy(): return []",
            "implements the unknown hook protego_packing_policy; did you mean protego_packing_policies?",
        ),
        (
            "@hookimpl\ndef protego_packing_policies(): return []\n@hookimpl\ndef coffee(): return []",
            "implements the unknown hook coffee; known are protego_crypto_suites, ",
        ),
        (
            "def protego_crypto_suite(): return []",
            "implements the unknown hook protego_crypto_suite; did you mean protego_crypto_suites?",
        ),
        ("def protego_crypto_suites(): return []", "defines protego_crypto_suites without @hookimpl"),
        (
            "@hookimpl\ndef protego_crypto_suites(colour): return []",
            "does not fit its hook: Plugin 'faulty' for hook 'protego_crypto_suites'",
        ),
        (
            "@hookimpl(wrapper=True)\ndef protego_crypto_suites():\n    return (yield)",
            "implements protego_crypto_suites as a wrapper",
        ),
        (
            "@hookimpl\ndef protego_crypto_suites(): return [][0]",
            "failed while calling protego_crypto_suites: IndexError: list index out of range",
        ),
        (
            "import sys\n@hookimpl\ndef protego_crypto_suites(): sys.exit()",
            "failed while calling protego_crypto_suites: SystemExit:",
        ),
    ],
)
def test_a_faulty_plugin_is_named_with_its_path_and_the_cause(tmp_path: Path, source: str, says: str) -> None:
    path = write(tmp_path / "faulty.py", f"from protego_cli.hookspecs import hookimpl\n{source}\n")
    text = refusal(path)
    assert text.startswith(f"plugin 'faulty' ({path}) ")
    assert says in text


def test_a_faulty_entry_point_is_named_with_its_distribution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "acme-broken", "1", {"broken": "acme_module_that_is_not_there"})
    monkeypatch.syspath_prepend(tmp_path)
    assert (
        "plugin 'broken' (entry point of acme-broken) failed while loading: ModuleNotFoundError" in refusal()
    )


def test_a_keyboard_interrupt_is_nobody_s_fault(tmp_path: Path) -> None:
    path = write(tmp_path / "slow.py", "raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load(path)


def test_a_module_that_failed_is_tried_afresh(tmp_path: Path) -> None:
    path = write(tmp_path / "fixed.py", "raise OSError\n")
    refusal(path)
    write(path, policy("fixed-and-longer-than-before"))
    assert "fixed-and-longer-than-before" in load(path).packing_policies()


def test_an_optional_implementation_of_a_later_hook_is_fine(tmp_path: Path) -> None:
    """A plugin that serves several versions of Protego says so (pluggy's `optionalhook`)."""
    source = policy("early") + "\n    @hookimpl(optionalhook=True)\n    def protego_oracles(): return []\n"
    plugins = load(write(tmp_path / "early.py", source))
    assert plugins.listing()[-1].hooks == HOOK


def test_paths_that_are_no_plugins(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    text = write(tmp_path / "notes.txt", "notes\n")
    assert "missing.py does not exist; correct plugins.paths" in refusal(tmp_path / "missing.py")
    assert "empty is a directory without __init__.py" in refusal(tmp_path / "empty")
    assert "notes.txt is neither a .py file nor a package directory" in refusal(text)
