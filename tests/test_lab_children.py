"""How the orchestrator asks its endpoints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import trio
import trio.testing

from protego_cli.lab.children import Child

SLOW = """\
import json, sys
commands = [json.loads(sys.stdin.readline()) for _ in range(2)]
for command in commands:
    print(json.dumps({"sites": [], "answers": command["number"], "seconds": command["number"]}), flush=True)
"""  # answers the first command when there is a second


async def test_who_has_stopped_waiting_leaves_no_answer_to_the_next(tmp_path: Path) -> None:
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", SLOW], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    child = Child("lab-peers", process, tmp_path / "log")
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child.ask, "look")
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert (await child.ask("stop")).seconds == 2
        await process.wait()
    await child.let_go()
    assert process.stdout is not None
    await process.stdout.aclose()
