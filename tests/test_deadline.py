"""A plugin that does not answer is interrupted, however it clings to its life."""

from __future__ import annotations

import contextlib
import gc
import signal
import threading
import time
from collections.abc import Callable

import pytest

from protego_cli.control.packing.deadline import TooLate, within
from protego_cli.control.packing.packing_view import GpnView, PackingView, TunnelView
from protego_cli.control.packing.placement import Move, Packer, PolicyFault

LIMIT = 0.1


def spins() -> None:
    while True:
        pass


def sleeps() -> None:
    time.sleep(60)


def swallows() -> None:
    while True:
        with contextlib.suppress(BaseException):
            spins()


def swallows_in_a_loop() -> None:
    while True:
        try:
            spins()
        except BaseException:  # noqa: BLE001
            continue


def swallows_and_sleeps() -> None:
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(60)


def clings() -> None:
    try:
        spins()
    finally:
        sleeps()


@pytest.mark.parametrize(
    "question", [spins, sleeps, swallows, swallows_in_a_loop, swallows_and_sleeps, clings]
)
def test_whatever_it_does_it_is_ended(question: Callable[[], None]) -> None:
    before = signal.getsignal(signal.SIGALRM)
    began = time.monotonic()
    with pytest.raises(TooLate):
        within(LIMIT, question)
    assert LIMIT <= time.monotonic() - began < LIMIT + 5
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert gc.isenabled()


def test_an_answer_in_time_is_returned_and_nothing_rings_later() -> None:
    for number in range(1000):
        assert within(0.5, lambda number=number: number) == number  # type: ignore[misc]
    within(0.02, lambda: None)
    time.sleep(0.05)


def test_what_it_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        within(LIMIT, lambda: 1 / 0)


def test_in_another_thread_there_is_no_limit() -> None:
    answers: list[str] = []

    def work() -> None:
        def slow() -> str:
            time.sleep(0.05)
            return "late"

        answers.append(within(0.01, slow))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == ["late"]


class Stuck:
    name = "stuck"

    def place(self, tunnel: TunnelView, view: PackingView) -> str | None:
        sleeps()
        return None

    def plan(self, view: PackingView) -> list[Move]:
        swallows()
        return []


def test_a_policy_that_takes_too_long_is_named_and_places_nothing() -> None:
    told: list[str] = []
    packer = Packer(Stuck(), "acme", lambda fault, tunnel: told.append(str(fault)), live=True)
    view = PackingView(0.0, [GpnView("gpn-1", 1.0, 0.0)], [TunnelView("a/b", 0.1, "gpn-1")])
    began = time.monotonic()
    assert packer.place(TunnelView("a/c", 0.1), view) is None
    assert time.monotonic() - began < 1
    with pytest.raises(PolicyFault, match=r"'stuck' of plugin 'acme' has not answered within 1 s"):
        packer.plan(view)
    assert told[0] == "the packing policy 'stuck' of plugin 'acme' has not answered within 0.1 s"
