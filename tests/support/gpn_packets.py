"""Packets of the one tunnel that tests of a GPN on loopback have."""

from __future__ import annotations

from protego_cli.wire.selectors import TrafficSelector
from protego_cli.wire.vxlan import ETHERTYPE_IPV4, build_frame_header
from tests.support.esp_packets import ipv4, passed

VNI, SPI_IN, SPI_OUT = 1001, 0xC0FFEE01, 0xC0FFEE02
GATEWAY_MAC, VTEP_MAC = bytes.fromhex("025000001001"), bytes.fromhex("020000000005")
LOCAL, REMOTE = (TrafficSelector.from_prefix("10.1.0.0/24"),), (TrafficSelector.from_prefix("10.2.0.0/24"),)
IN, OUT = ipv4("10.2.0.9", "10.1.0.5", bytes(100)), ipv4("10.1.0.5", "10.2.0.9", bytes(100))
FRAME_IN = build_frame_header(VNI, VTEP_MAC, GATEWAY_MAC, ETHERTYPE_IPV4) + passed(IN)
