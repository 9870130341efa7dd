"""`return = "gin"`: what GPNs seal reaches a real peer through the GIN, without loss in migrations."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.netns import wait_until
from tests.support.site import site, swanctl_conf
from tests.support.traffic import without_loss

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]


def test_a_peer_is_served_through_the_gin_alone(tmp_path: Path) -> None:
    with site(tmp_path) as place:
        text = place.cluster.read_text()
        place.cluster.write_text(text.replace("[cluster]\n", '[cluster]\nreturn = "gin"\n'))
        for gpn in place.gpns:
            place.kill(gpn)
            place.start(gpn)
        wait_until(place.nodes_up, "the GPNs up again", every=0.2)
        place.swan.load(swanctl_conf())
        place.swan.initiate()
        place.wait_tunnel()
        gpn = place.tunnel()["gpn"]
        other = next(name for name in place.gpns if name != gpn)
        seen = without_loss(place, lambda: [place.migrate(to) for to in (other, gpn, other)])
        assert len(seen["action"]) == 3

        def all_by_the_gin() -> bool:
            sealed = sum(place.counters(name).get("gpn_sealed", 0) for name in place.gpns)
            return 0 < sealed == place.counters("gin-1").get("gin_esp_to_peer", 0)

        wait_until(all_by_the_gin, "the GIN's count of packets to the peer is that of the GPNs", every=0.2)
