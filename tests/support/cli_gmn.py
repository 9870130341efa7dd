"""Commands against a control node that gives the answers of the test."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from protego_cli.cli import asking, jobs
from protego_cli.cli.app import main
from protego_cli.config.model import Cluster
from protego_cli.control.channel.client import Ask
from protego_cli.control.channel.message import Reply, Request
from protego_cli.control.channel.pool_messages import JobStatus
from tests.support.clusters import write_cluster


class Gmn:
    """A control node's mouth: its answers to each kind of request, in turn, the last one again and again."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.answers: dict[type[Request], list[Reply | Exception]] = {}

    async def ask(self, request: Request) -> Reply:
        await trio.lowlevel.checkpoint()
        self.asked.append(request)
        answers = self.answers[type(request)]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def gmn(monkeypatch: pytest.MonkeyPatch) -> Gmn:
    found = Gmn()

    async def ask(_: Cluster, request: Request) -> Reply:
        return await found.ask(request)

    async def converse(_: Cluster, talk: Callable[[Ask], Awaitable[JobStatus]]) -> JobStatus:
        return await talk(found.ask)  # type: ignore[arg-type]  # its replies are some of all

    monkeypatch.setattr(asking, "ask", ask)
    monkeypatch.setattr(jobs, "converse", converse)
    monkeypatch.setattr(jobs, "PAUSE", 0)
    monkeypatch.setattr(jobs, "RETRY", 0)
    return found


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    return write_cluster(tmp_path)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0), *capsys.readouterr()
