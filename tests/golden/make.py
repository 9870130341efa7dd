"""Write `esp.json`: packets into a GPN, its verdict on each, and what leaves.

    python -m tests.golden.make

ESP, VXLAN and IP, in and out, are scapy's. Nothing of the gateway takes part, so the file says what the RFCs
say. It changes only when this script does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from tests.support.esp_reference import padded, seal
from tests.support.esp_scapy import scapy_seal
from tests.support.esp_world import GCM

FILE = Path(__file__).with_name("esp.json")
SUITE = "aes256gcm16"
VNI = 1001
SPI_IN, SPI_OUT = 0x11111111, 0x21111111
KEY_IN, KEY_OUT = bytes(range(36)), bytes(range(100, 136))
GATEWAY_MAC, VTEP_MAC = "02:50:00:00:10:01", "02:00:00:00:00:05"
VTEP, GEN, PEER, VIP = "10.20.0.5", "10.10.0.3", "198.51.100.7", "203.0.113.10"
IN4, IN6 = IP(src="10.2.0.9", dst="10.1.0.5"), IPv6(src="fd00:2::9", dst="fd00:1::5")
OUT4, OUT6 = IP(src="10.1.0.5", dst="10.2.0.9"), IPv6(src="fd00:1::5", dst="fd00:2::9")
EF, ECT1, ECT0, CE = 46 << 2, 1, 2, 3  # of a TOS (RFC 3246, RFC 3168 5)
DATA = UDP(sport=7, dport=9) / Raw(b"golden")

Case = dict[str, str | int]


def _esp(number: int, inner: Packet) -> bytes:
    return scapy_seal(GCM, KEY_IN, SPI_IN, number, bytes(inner))


def _sealed(number: int, inner: Packet) -> bytes:
    return scapy_seal(GCM, KEY_OUT, SPI_OUT, number, bytes(_passed(inner)))


def _raw(number: int, text: bytes) -> bytes:
    """Plaintexts that scapy would not make."""
    return seal(KEY_IN, SPI_IN, number, text)


def _to_vtep(inner: Packet) -> bytes:
    return bytes(VXLAN(vni=VNI, flags=8) / Ether(src=GATEWAY_MAC, dst=VTEP_MAC) / _passed(inner))


def _from_vtep(inner: Packet, vni: int = VNI) -> bytes:
    return bytes(VXLAN(vni=vni, flags=8) / Ether(src=VTEP_MAC, dst=GATEWAY_MAC) / inner)


def _case(
    description: str,
    port: str,
    packet: bytes,
    verdict: str,
    out: bytes = b"",
    *,
    tos: int = 0,
    out_tos: int = 0,
) -> Case:
    return {
        "description": description,
        "port": port,
        "in": packet.hex(),
        "tos": tos,
        "verdict": verdict,
        "out": out.hex(),
        "out_tos": out_tos,
    }


def _passed(inner: Packet) -> Packet:
    """The same packet with a hop less; scapy computes the header checksum when it is built."""
    passed = inner.copy()
    field = "hlim" if IPv6 in inner else "ttl"
    setattr(passed, field, getattr(inner, field) - 1)
    return passed


def _with_hops(inner: Packet, left: int) -> Packet:
    made = inner.copy()
    setattr(made, "hlim" if IPv6 in inner else "ttl", left)
    return made


def _marked(inner: Packet, tos: int) -> Packet:
    """The same packet with this TOS; scapy computes the header checksum when it is built."""
    marked = inner.copy()
    setattr(marked, "tc" if IPv6 in inner else "tos", tos)
    return marked


def _inbound_marks() -> list[Case]:
    """RFC 6040 4.2; EF is DSCP 46, which goes no further than the outer header."""
    cases: list[Case] = []
    number = 100_101
    for name, inner in (("IPv4", IN4 / DATA), ("IPv6", IN6 / DATA)):
        for outer, before, after in (
            (EF | CE, EF | ECT0, EF | CE),
            (CE, ECT1, CE),
            (EF | ECT1, ECT0, ECT1),
            (EF, ECT0, ECT0),
            (ECT0, 0, 0),
            (CE, 0, None),
        ):
            packet = _esp(number, _marked(inner, before))
            number += 1
            if after is None:
                cases.append(
                    _case(f"{name} that cannot bear CE", "esp", packet, "gpn_drop_ecn_in", tos=outer)
                )
            else:
                out = _to_vtep(_marked(inner, after))
                description = f"{name}, TOS {before:#04x} in {outer:#04x}"
                cases.append(_case(description, "esp", packet, "gpn_opened", out, tos=outer, out_tos=after))
    return cases


def _outbound_marks(number: int) -> list[Case]:
    """RFC 6040 4.1, after VXLAN is left by 4.2."""
    cases: list[Case] = []
    for name, inner in (("IPv4", OUT4 / DATA), ("IPv6", OUT6 / DATA)):
        for outer, before, after in (
            (0, EF | ECT0, EF | ECT0),
            (EF | CE, ECT0, CE),
            (ECT1, CE, CE),
            (CE, 0, None),
        ):
            packet = _from_vtep(_marked(inner, before))
            if after is None:
                cases.append(
                    _case(f"{name} that cannot bear CE", "vxlan", packet, "gpn_drop_ecn_out", tos=outer)
                )
                continue
            out = _sealed(number, _marked(inner, after))
            number += 1
            description = f"{name}, TOS {before:#04x} in {outer:#04x}"
            cases.append(_case(description, "vxlan", packet, "gpn_sealed", out, tos=outer, out_tos=after))
    return cases


def _inbound() -> list[Case]:
    good4, good6, tcp = IN4 / DATA, IN6 / DATA, IN4 / TCP(sport=80, dport=1025) / Raw(b"tcp")
    inner = bytes(good4)
    forged = bytearray(_esp(4, good4))
    forged[20] ^= 1
    return [
        _case("IPv4 in UDP, first packet", "esp", _esp(1, good4), "gpn_opened", _to_vtep(good4)),
        _case("IPv6", "esp", _esp(2, good6), "gpn_opened", _to_vtep(good6)),
        _case("a gap in the numbers, TCP", "esp", _esp(9, tcp), "gpn_opened", _to_vtep(tcp)),
        _case("an older number inside the window", "esp", _esp(3, good4), "gpn_opened", _to_vtep(good4)),
        _case("a replay", "esp", _esp(9, tcp), "gpn_drop_replay"),
        _case("one bit of the ciphertext turned", "esp", bytes(forged), "gpn_drop_auth"),
        _case("its ICV cut short", "esp", _esp(4, good4)[:-4], "gpn_drop_auth"),
        _case("another SA's SPI", "esp", b"\x99" + _esp(4, good4)[1:], "gpn_drop_unknown_spi"),
        _case("shorter than any ESP packet", "esp", _esp(4, good4)[:27], "gpn_drop_short"),
        _case("padding that is not 1, 2, 3", "esp", _raw(5, inner + b"\x07\x07\x02\x04"), "gpn_drop_padding"),
        _case("a next header of 17", "esp", _raw(6, padded(inner, 17)), "gpn_drop_padding"),
        _case("a dummy packet", "esp", _raw(7, padded(bytes(64), 59)), "gpn_drop_dummy"),
        _case("TFC padding", "esp", _raw(8, padded(inner, 4, extra=100)), "gpn_opened", _to_vtep(good4)),
        _case("IPv4 announced as IPv6", "esp", _raw(10, padded(inner, 41)), "gpn_drop_inner_in"),
        _case("an inner length too long", "esp", _raw(11, padded(inner[:-1], 4)), "gpn_drop_inner_in"),
        _case(
            *("a source outside the selectors", "esp"),
            *(_esp(12, IP(src="10.3.0.9", dst="10.1.0.5") / DATA), "gpn_drop_selector_in"),
        ),
        _case(
            *("a destination outside the selectors", "esp"),
            *(_esp(13, IP(src="10.2.0.9", dst="10.1.1.5") / DATA), "gpn_drop_selector_in"),
        ),
        _case("far ahead", "esp", _esp(100_000, good4), "gpn_opened", _to_vtep(good4)),
        _case("left of the window", "esp", _esp(14, good4), "gpn_drop_replay"),
        *(
            _case("two hops left", "esp", _esp(number, packet), "gpn_opened", _to_vtep(packet))
            for number, packet in ((100_051, _with_hops(good4, 2)), (100_052, _with_hops(good6, 2)))
        ),
        *_inbound_marks(),
    ]


def _outbound() -> list[Case]:
    good4, good6 = OUT4 / DATA, OUT6 / DATA
    odd = OUT4 / UDP(sport=7, dport=9) / Raw(b"golden!")

    flagless, reserved = bytearray(_from_vtep(good4)), bytearray(_from_vtep(good4))
    flagless[0] = 0
    reserved[:4], reserved[7] = bytes.fromhex("ffeeddcc"), 0xBB
    return [
        _case("IPv4 in UDP", "vxlan", _from_vtep(good4), "gpn_sealed", _sealed(1, good4)),
        _case("IPv6", "vxlan", _from_vtep(good6), "gpn_sealed", _sealed(2, good6)),
        _case("a length that needs padding", "vxlan", _from_vtep(odd), "gpn_sealed", _sealed(3, odd)),
        _case("Ethernet padding", "vxlan", _from_vtep(good4) + bytes(12), "gpn_sealed", _sealed(4, good4)),
        _case("ARP", "vxlan", _from_vtep(ARP(psrc="10.1.0.5", pdst="10.1.0.1")), "gpn_drop_inner"),
        _case("no valid VNI", "vxlan", bytes(flagless), "gpn_drop_vxlan_malformed"),
        _case("half a header", "vxlan", _from_vtep(good4)[:5], "gpn_drop_vxlan_malformed"),
        _case("an inner packet cut short", "vxlan", _from_vtep(good4)[:-1], "gpn_drop_inner"),
        _case("another tenant's VNI", "vxlan", _from_vtep(good4, vni=1002), "gpn_drop_no_rule"),
        _case(
            *("a destination no tunnel serves", "vxlan"),
            *(_from_vtep(IP(src="10.1.0.5", dst="10.9.0.9") / DATA), "gpn_drop_no_rule"),
        ),
        _case(
            *("a source outside the selectors", "vxlan"),
            *(_from_vtep(IP(src="10.1.1.5", dst="10.2.0.9") / DATA), "gpn_drop_selector_out"),
        ),
        _case("reserved fields set", "vxlan", bytes(reserved), "gpn_sealed", _sealed(5, good4)),
        *_outbound_marks(6),
    ]


def make() -> dict[str, Any]:
    """The whole file: the SA, then the cases in the order in which they must be given."""
    return {
        "sa": {
            "suite": SUITE,
            "vni": VNI,
            "spi_in": SPI_IN,
            "spi_out": SPI_OUT,
            "key_in": KEY_IN.hex(),
            "key_out": KEY_OUT.hex(),
            "local": ["10.1.0.0/24", "fd00:1::/64"],
            "remote": ["10.2.0.0/24", "fd00:2::/64"],
            "vip": VIP,
            "peer": PEER,
            "gen": GEN,
            "vtep": VTEP,
            "vtep_mac": VTEP_MAC.replace(":", ""),
            "gateway_mac": GATEWAY_MAC.replace(":", ""),
        },
        "cases": _inbound() + _outbound(),
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(make(), indent=1) + "\n")
