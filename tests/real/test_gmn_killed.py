"""The GMN is killed under a real peer's traffic and comes back: no packet is lost, the peer's IKE_SA stands.

The peer is a real strongSwan, the processes are real ones, SIGKILL is what ends them.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import pytest

from protego_cli.control.state.crash import VARIABLE
from tests.support.netns import CommandFailed, wait_until
from tests.support.site import Site, site, swanctl_conf
from tests.support.traffic import without_loss

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

GMN = "gmn-1"
POINTS = ("journal.after-commit", "migration.rekeyed", "migration.installed", "migration.distributed")


def other_gpn(place: Site) -> str:
    here = place.tunnel()["gpn"]
    return next(name for name in place.gpns if name != here)


def agree(place: Site) -> None:
    """Both ends have one CHILD_SA, the same."""
    wait_until(
        lambda: [place.tunnel()["spi_out"]] == place.swan.child_spis(), "both ends agree", 40, every=0.2
    )


def returns(place: Site) -> None:
    place.start(GMN)
    wait_until(place.nodes_up, "every node back", every=0.1)


def test_killed_and_back_without_loss_and_rekeyed_from_both_sides(tmp_path: Path) -> None:
    with site(tmp_path) as place:
        place.swan.load(swanctl_conf())
        place.swan.initiate()
        place.wait_tunnel()
        ike = place.swan.ike_spis()

        def die_and_work() -> None:
            place.kill(GMN)
            time.sleep(1.0)  # the time that it is away
            returns(place)
            before = place.swan.child_spis()
            place.swan.rekey_child()
            wait_until(
                lambda: len(now := place.swan.child_spis()) == 1 and now != before, "a rekey of theirs"
            )
            agree(place)
            place.migrate(other_gpn(place))
            agree(place)

        without_loss(place, die_and_work)
        assert place.swan.ike_spis() == ike
        assert place.status()["epoch"] == 2


def test_killed_in_the_middle_of_migrations_without_loss(tmp_path: Path) -> None:
    with site(tmp_path) as place:
        place.swan.load(swanctl_conf())
        place.swan.initiate()
        place.wait_tunnel()
        ike = place.swan.ike_spis()

        def die_at_each_point() -> None:
            for point in POINTS:
                place.kill(GMN)
                place.start(GMN, **{VARIABLE: point if point.startswith("migration") else f"{point}:4"})
                wait_until(
                    lambda: place.roles[GMN].poll() is not None or place.nodes_up(), "it is up or gone"
                )

                def dies() -> bool:
                    if place.roles[GMN].poll() is None:
                        with suppress(CommandFailed):  # the peer may put a rekey off; or it has just died
                            place.protego("migrate", "acme/hq", "--to", other_gpn(place))
                    return place.roles[GMN].poll() is not None

                wait_until(dies, f"it dies at {point}", every=0.5)
                returns(place)
                agree(place)

        without_loss(place, die_at_each_point)
        assert place.swan.ike_spis() == ike
        place.migrate(other_gpn(place))
        agree(place)
