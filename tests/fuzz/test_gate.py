"""The short fuzz gate, and the test that no decoder is left out of it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from types import CodeType, FrameType, FunctionType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import protego_cli.esp
import protego_cli.ike
import protego_cli.wire
from protego_cli.control.channel import frames
from protego_cli.control.pools import joining
from tests.fuzz.targets import Target, targets
from tests.support.ike_strategies import mutations

TARGETS = targets()
NAMES = re.compile(r"_?(parse|open|decode|unwrap|receive|feed)(_.*)?|.*_untrusted")
BYTES = re.compile(r"\b(bytes|bytearray|memoryview|Buffer|Reader)\b")


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    return st.one_of(st.sampled_from(target.seeds).flatmap(mutations), st.binary(max_size=120))


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_whatever_comes_in_nothing_is_raised(target: Target) -> None:
    @settings(max_examples=150)
    @given(inputs(target))
    def fuzz(data: bytes) -> None:
        target.run(data)

    for seed in target.seeds:
        target.run(seed)
    fuzz()


def decoders() -> dict[CodeType, str]:
    """What takes bytes apart in the layers that see the network's."""
    found: dict[CodeType, str] = {}
    modules = [frames, joining]
    for package in (protego_cli.wire, protego_cli.esp, protego_cli.ike):
        names = [info.name for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
        modules += map(importlib.import_module, names)
    for module in modules:
        for function in _functions(module, module.__name__):
            if NAMES.fullmatch(function.__name__) and _takes_bytes(function):
                found[function.__code__] = f"{module.__name__}.{function.__qualname__}"
    return found


def _functions(holder: object, module: str) -> Iterator[FunctionType]:
    for value in vars(holder).values():
        if inspect.isfunction(value) and value.__module__ == module:
            yield value
        elif inspect.isclass(value) and value.__module__ == module and not getattr(value, "_is_protocol", 0):
            yield from _functions(value, module)


def _takes_bytes(function: FunctionType) -> bool:
    annotations = {name: str(kind) for name, kind in function.__annotations__.items() if name != "return"}
    return any(BYTES.search(kind) for kind in annotations.values())


def test_every_decoder_is_entered() -> None:
    wanted = decoders()
    entered: set[CodeType] = set()

    def notice(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            entered.add(frame.f_code)

    fresh = targets()
    sys.setprofile(notice)
    try:
        for target in fresh:
            for seed in target.seeds:
                target.run(seed)
    finally:
        sys.setprofile(None)
    missed = sorted(name for code, name in wanted.items() if code not in entered)
    assert not missed, f"no target of tests/fuzz/targets.py enters {', '.join(missed)}"
    assert len(wanted) > 20
