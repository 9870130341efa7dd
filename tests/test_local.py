"""`protego local` from end to end: real processes, real sockets, every packet counted."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.drain import drain_run
from protego_cli.errors import UsageError
from protego_cli.lab import layout
from protego_cli.lab.main import run_local

PROGRAM = [sys.executable, "-m", "protego_cli", "local", "--headless"]


def options(**given: float) -> list[str]:
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


def test_a_short_run_loses_nothing_and_its_receipt_is_the_contract(tmp_path: Path) -> None:
    arguments = options(duration=3, tenants=3, gpns=2, migrations=6, pps=200)
    done = subprocess.run(
        [*PROGRAM, "--json", *arguments],
        capture_output=True,
        text=True,
        timeout=90,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    receipt = json.loads(done.stdout)
    assert set(receipt) == {
        *("tunnels", "migrations", "sent", "received", "lost", "misdelivered", "corrupted", "duplicated"),
        *("reordered", "pps", "migration_ms", "per_migration"),
    }
    assert (receipt["tunnels"], receipt["migrations"]) == (3, 6)
    for fault in ("lost", "misdelivered", "corrupted", "duplicated"):
        assert receipt[fault] == 0
    assert receipt["sent"] == receipt["received"] >= 3 * 3 * 200 * 2 * 0.9
    times = receipt["migration_ms"]
    assert 0 < times["p50"] <= times["p99"] <= times["max"]
    assert [m["tunnel"] for m in receipt["per_migration"]] == [f"t{i}/hq" for i in (1, 2, 3)] * 2
    for migration in receipt["per_migration"]:
        assert set(migration) == {"tunnel", "from", "to", "via_old", "via_new"}
        assert migration["from"] != migration["to"]
        assert migration["via_old"] > 0
        assert migration["via_new"] > 0
    assert list(tmp_path.iterdir()) == []


def test_a_gpn_is_emptied_under_load_without_a_lost_packet(tmp_path: Path) -> None:
    run, receipt = drain_run(tmp_path, tunnels=12, pps=100)
    assert (run.drained.node, run.drained.moved, run.drained.failed) == ("gpn-1", 12, [])
    assert receipt.faults() == []
    assert receipt.sent == receipt.received > 12 * 2 * 100
    status = run.show.scene.status
    assert status is not None
    nodes = {node.name: node for node in status.nodes}
    assert (nodes["gpn-1"].tunnels, nodes["gpn-2"].tunnels) == (0, 12)
    assert (nodes["gpn-1"].draining, nodes["gpn-2"].draining) == (True, False)
    assert all(tunnel.pps_in > 30 and tunnel.cpu > 0 for tunnel in status.tunnels)


def test_gpns_come_and_go_under_a_trace_and_no_packet_is_lost(tmp_path: Path) -> None:
    """Twenty minutes in twenty seconds: a quiet beginning, a rush for which two GPNs more are needed, a quiet
    end."""
    trace = tmp_path / "rush.csv"
    rows = [[60.0] * 6] * 4 + [[380.0] * 6] * 8 + [[60.0] * 6] * 8
    trace.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    done = subprocess.run(
        [*PROGRAM, "--elastic", "--trace", str(trace), "--json"],
        capture_output=True,
        text=True,
        timeout=90,
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    assert done.returncode == 0, done.stderr
    receipt = json.loads(done.stdout)
    packets = receipt["packets"]
    for fault in ("lost", "misdelivered", "corrupted", "duplicated"):
        assert packets[fault] == 0
    assert packets["sent"] == packets["received"] > 10_000
    assert packets["migrations"] >= 4, "two of three pairs go to another GPN, and come back"
    assert receipt["failed_moves"] == 0
    assert receipt["launched"] >= 3
    assert receipt["retired"] >= 1
    assert receipt["most_gpns"] >= 3
    assert abs(receipt["difference"]) <= 0.3, "so short a run is mostly the lag of its two changes"
    assert list(scratch.iterdir()) == []
    await_no_process("--name gpn-", str(scratch))


def await_no_process(*words: str) -> None:
    """Whatever was launched ends with the run."""
    deadline = time.monotonic() + 10
    while any(all(word in line for word in words) for line in _command_lines()):
        assert time.monotonic() < deadline, f"a process is left: {words}"
        time.sleep(0.05)


def _command_lines() -> Iterator[str]:
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdecimal():
                yield (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def test_ctrl_c_ends_early_with_a_receipt(tmp_path: Path) -> None:
    arguments = options(duration=60, tenants=1, gpns=2, migrations=200)
    with started(tmp_path, "--json", *arguments, stderr=subprocess.PIPE) as process:
        wait_for(process, "moved from")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert 1 <= json.loads(out)["migrations"] < 200
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_before_there_is_anything_to_count(tmp_path: Path) -> None:
    arguments = options(duration=60, tenants=1, gpns=2, migrations=0)
    with started(tmp_path, *arguments) as process:
        wait_for(process, "started")
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 130, out
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_nobody_reads_ends_and_leaves_nothing(tmp_path: Path) -> None:
    arguments = options(duration=60, tenants=1, gpns=2, migrations=0)
    with started(tmp_path, *arguments, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(timeout=30) == 1
    assert err == ""
    assert list(tmp_path.iterdir()) == []


def test_a_node_that_dies_fails_the_run_at_once_and_no_process_is_left(tmp_path: Path) -> None:
    arguments = options(duration=60, tenants=1, gpns=2, migrations=0)
    with started(tmp_path, *arguments) as process:
        wait_for(process, "traffic:")
        (directory,) = tmp_path.iterdir()
        nodes = processes_of(directory)
        assert len(nodes) == 7  # GMN, GIN, GEN, two GPNs, the peers, the tenants
        os.kill(next(pid for pid, line in nodes.items() if "gin-1" in line), signal.SIGKILL)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "gin-1 ended by signal 9 during the run" in out
    assert str(directory) in out  # the logs are kept
    assert processes_of(directory) == {}


def test_a_run_that_loses_packets_says_which(tmp_path: Path) -> None:
    arguments = options(duration=2, tenants=1, gpns=2, migrations=0)
    with started(tmp_path, *arguments) as process:
        wait_for(process, "traffic:")
        (directory,) = tmp_path.iterdir()
        gen = next(pid for pid, line in processes_of(directory).items() if "gen-1" in line)
        os.kill(gen, signal.SIGSTOP)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    receipt = json.loads((directory / "receipt.json").read_text())
    found = re.search(r"  peers: t1/hq never got ([\d,]+) to ([\d,]+) of ([\d,]+)\n", out)
    assert found is not None
    first, last, sent = (int(number.replace(",", "")) for number in found.groups())
    assert last + 1 == sent
    assert receipt["lost"] == sent - first > 0
    assert "tenants: t1/hq never got" not in out
    assert (directory / "failure.txt").read_text() in out


def test_children_do_not_outlive_a_killed_orchestrator(tmp_path: Path) -> None:
    arguments = options(duration=60, tenants=1, gpns=2, migrations=0)
    with started(tmp_path, *arguments) as process:
        wait_for(process, "traffic:")
        (directory,) = tmp_path.iterdir()
        descriptors = [os.pidfd_open(pid) for pid in processes_of(directory)]
        process.kill()
        process.communicate(timeout=30)
    assert len(descriptors) == 7
    for descriptor in descriptors:
        assert ends_within(descriptor, 10)
        os.close(descriptor)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"tenants": 0}, "--tenants"),
        ({"gpns": 1}, "--gpns"),
        ({"pps": 0}, "--pps"),
        ({"duration": 0.0}, "--duration"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, int], named: str) -> None:
    right = {"duration": 5.0, "tenants": 2, "gpns": 2, "migrations": 4, "pps": 200}
    with pytest.raises(UsageError, match=named):
        run_local(json=True, headless=True, **(right | wrong))


def test_two_runs_never_share_addresses() -> None:
    claims = [layout.claim() for _ in range(8)]
    try:
        assert len({block for block, _ in claims}) == len(claims)
    finally:
        for _, holder in claims:
            holder.close()


def started(tmp: Path, *arguments: str, stderr: int = subprocess.STDOUT) -> subprocess.Popen[str]:
    """A run whose temporary files are in a directory of the test."""
    return subprocess.Popen(
        [*PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp)},
    )


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    """Read what the run says until it says this."""
    stream = process.stderr or process.stdout
    assert stream is not None
    said = []
    for line in stream:
        said.append(line)
        if text in line:
            return
    pytest.fail("".join(said))


def processes_of(directory: Path) -> dict[int, str]:
    """The running processes whose command line names this directory."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if str(directory) in line:
                found[int(entry.name)] = line
    return found


def ends_within(descriptor: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
