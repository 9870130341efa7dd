"""The provisioner `kubernetes` against an API server in this process: scaling, conflicts, faults, tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from protego_cli.config.model import PoolConfig, ProvisionerConfig
from protego_cli.control.pools.provision import Place, Provisioner, ProvisionFault
from protego_cli.errors import EnvironmentFault
from protego_cli.plugins import statefulset
from protego_cli.plugins.manager import load_plugins
from tests.support.kubernetes import SCALE, SECRETS, ApiServer, api_server

POOL = PoolConfig("gpn", "gpn", ("10.0.2.1", "10.0.2.9"), 0, 9, ProvisionerConfig("kubernetes"))
KIND = load_plugins().provisioners()["kubernetes"].kind


@asynccontextmanager
async def cluster(directory: Path) -> AsyncIterator[tuple[ApiServer, Provisioner]]:
    async with api_server() as api, trio.open_nursery() as nursery:
        place = Place(POOL, api.settings(directory), directory / "cluster.toml", directory)
        provisioner = KIND.open(place)
        nursery.start_soon(provisioner.run)
        with trio.fail_after(20):
            yield api, provisioner
        nursery.cancel_scope.cancel()


async def test_it_scales_up_and_down_and_keeps_the_tokens(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (api, gpns):
        await gpns.launch(POOL.node(1), "token-1")
        await gpns.launch(POOL.node(2), "token-2")
        assert (api.replicas, api.kept()) == (2, {"gpn-1": "token-1", "gpn-2": "token-2"})
        api.ready = 1
        assert await gpns.nodes() == {"gpn-1": "a pod of the StatefulSet", "gpn-2": "its pod is being made"}
        await gpns.retire(POOL.node(2))
        assert (api.replicas, api.kept()) == (1, {"gpn-1": "token-1"})
        await gpns.retire(POOL.node(1))
        assert (api.replicas, api.kept()) == (0, {})
        assert await gpns.nodes() == {}


async def test_the_same_may_be_asked_twice(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (api, gpns):
        await gpns.launch(POOL.node(2), "token-2")
        before = len(api.asked)
        await gpns.launch(POOL.node(1), "token-1")
        assert api.replicas == 2, "it is there already"
        assert f"PUT {SCALE}" not in api.asked[before:]
        await gpns.retire(POOL.node(2))
        await gpns.retire(POOL.node(2))
        assert api.replicas == 1


async def test_only_the_last_can_go(tmp_path: Path) -> None:
    assert KIND.ordered
    async with cluster(tmp_path) as (api, gpns):
        api.scaled(3)
        with pytest.raises(
            ProvisionFault, match="gpn-2 is not the last of StatefulSet protego-gpn, which has 3"
        ):
            await gpns.retire(POOL.node(2))
        assert api.replicas == 3


async def test_a_conflict_is_read_anew_and_nothing_of_others_is_undone(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (api, gpns):
        await gpns.launch(POOL.node(1), "token-1")
        api.faults = ["", "", "conflict"]  # at the PATCH, the GET, and the PUT, which comes too late
        await gpns.launch(POOL.node(2), "token-2")
        assert api.replicas == 2
        assert api.asked.count(f"PUT {SCALE}") == 3
        api.scaled(5)
        await gpns.launch(POOL.node(3), "token-3")
        assert api.replicas == 5, "somebody has made more"


async def test_conflicts_without_end_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statefulset, "PAUSE", 0.001)
    async with cluster(tmp_path) as (api, gpns):
        api.faults = ["", "", *("", "conflict") * 9]
        with pytest.raises(ProvisionFault, match="others keep changing its scale; tried 5 times"):
            await gpns.launch(POOL.node(1), "token-1")


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (500, "500 an error on the server"),
        (503, "503 an error on the server"),
        (403, "403 .*needs get and update on statefulsets/scale, and secrets"),
    ],
)
async def test_what_the_server_refuses_is_told(tmp_path: Path, fault: int, says: str) -> None:
    async with cluster(tmp_path) as (api, gpns):
        api.faults = [fault]
        with pytest.raises(ProvisionFault, match=says):
            await gpns.nodes()
        assert await gpns.nodes() == {}, "and next time it is asked again"


async def test_a_token_that_is_not_accepted_is_told_and_read_anew(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (api, gpns):
        api.token = "renewed"
        with pytest.raises(
            ProvisionFault, match="401 Unauthorized; the token was not accepted: is `token_file`"
        ):
            await gpns.nodes()
        (tmp_path / "token").write_text("renewed")
        assert await gpns.nodes() == {}


async def test_a_slow_server_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statefulset, "TIMEOUT", 0.2)
    async with cluster(tmp_path) as (api, gpns):
        api.faults = ["slow"]
        with pytest.raises(ProvisionFault, match=r"no answer from https://127\.0\.0\.1:"):
            await gpns.nodes()
        assert await gpns.nodes() == {}


async def test_an_answer_that_is_too_long_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(tmp_path) as (_, gpns):
        assert await gpns.nodes() == {}
        monkeypatch.setattr(statefulset, "MAX_ANSWER", 20)
        with pytest.raises(ProvisionFault, match="more than 20 bytes"):
            await gpns.nodes()
        monkeypatch.undo()
        assert await gpns.nodes() == {}


async def test_what_goes_wrong_shows_no_token(tmp_path: Path) -> None:
    async with cluster(tmp_path) as (api, gpns):
        api.faults = [500]
        with pytest.raises(ProvisionFault) as fault:
            await gpns.launch(POOL.node(1), "protego-join.secret")
        assert "secret" not in str(fault.value).replace("secrets", "")
        assert api.asked == [f"PATCH {SECRETS}/protego-gpn-join"]


async def test_another_ca_is_not_believed(tmp_path: Path) -> None:
    async with api_server() as api, api_server() as other:
        settings = api.settings(tmp_path) | {"server": f"https://127.0.0.1:{other.port}"}
        gpns = KIND.open(Place(POOL, settings, tmp_path / "cluster.toml", tmp_path))
        with trio.fail_after(20), pytest.raises(ProvisionFault, match="cannot be reached"):
            await gpns.nodes()
        assert other.asked == []


def test_in_a_pod_it_needs_no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(POOL, {}, tmp_path / "cluster.toml", tmp_path)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(statefulset, "ACCOUNT", tmp_path)
    with pytest.raises(EnvironmentFault, match="namespace cannot be read"):
        KIND.open(place)
    (tmp_path / "namespace").write_text("gateways")
    with pytest.raises(EnvironmentFault, match="this is no pod, so say where the API server is"):
        KIND.open(place)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    assert statefulset._in_cluster() == "https://[fd00::1]:443"


def test_settings_are_judged() -> None:
    assert KIND.check({"statefulset": "gpn", "namespace": "gateways"}) == {}
    assert KIND.check({"replicas": 3})["replicas"].startswith("is not a known key")
    assert KIND.check({"server": True}) == {"server": "expected a text, got True"}
