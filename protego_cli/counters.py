"""The one table of counters: every drop has its reason here, and nothing else may be counted.

A node keeps one `Counters`; the data path adds to it per batch, the control channel reports it, and
`protego status --json` shows it per node.
"""

from __future__ import annotations

TABLE: dict[str, str] = {
    # GIN
    "gin_ike_in": "IKE datagrams passed to the GMN",
    "gin_ike_out": "IKE datagrams sent to peers",
    "gin_drop_first": "first IKE messages above the rate at which strangers' are passed to the GMN",
    "gin_drop_stranger": "other IKE messages of strangers above the rate at which they are passed to the GMN",
    "gin_esp_forwarded": "ESP packets passed to a GPN",
    "gin_esp_returned": "ESP packets that the kernel had passed to another GPN than their own, steered again",
    "gin_esp_to_peer": 'ESP packets of GPNs sent on to peers (return = "gin")',
    "gin_drop_to_peer": "packets of GPNs for no SPI or VIP of this GIN, or too short",
    "gin_esp_raw": "ESP packets that came without UDP",
    "gin_drop_no_raw": "packets of GPNs for peers without UDP, where this GIN has no raw socket",
    "gin_drop_short": "datagrams on the VIP too short to be IKE or ESP",
    "gin_drop_keepalive": "NAT keepalives (RFC 3948 2.3), absorbed",
    "gin_drop_tag_outside": "datagrams from outside that bear a reserved SPI (1-255)",
    "gin_drop_unknown_spi": "ESP packets whose SPI is not steered",
    "gin_drop_envelope": "envelopes from the fabric that are malformed or whose MAC is wrong",
    "gin_drop_tag": "tags from the fabric that are malformed or whose MAC is wrong",
    "gin_drop_limit": "ESP packets above the coarse ceiling of their SPI",
    "gin_drop_send": "packets the kernel refused to send",
    "gin_drop_overflow": "datagrams the kernel dropped because a socket's buffer was full",
    # GEN
    "gen_forwarded": "tenant packets passed to a GPN",
    "gen_answered": "ARP requests, neighbour solicitations and pings of a gateway address, answered",
    "gen_delivered": "packets from peers written to a TUN device",
    "gen_drop_ecn": "packets from peers marked as congested around inner ones that cannot be (RFC 6040 4.2)",
    "gen_drop_tun": "packets from peers that a TUN device did not take: it is down, gone or not made yet",
    "gen_drop_malformed": "VXLAN packets, or questions to a gateway address, that do not parse",
    "gen_drop_unanswered": "ARP requests for other addresses than the gateway's, or from a VTEP not known",
    "gen_drop_vtep": "VXLAN packets from an address that is no VTEP of that VNI",
    "gen_drop_no_route": "tenant packets for whose destination no tunnel exists",
    "gen_drop_not_ip": "inner frames that are neither IPv4 nor IPv6",
    "gen_drop_limit": "tenant packets above the coarse ceiling of their tunnel or tenant",
    "gen_drop_tag": "tags that are malformed or whose MAC is wrong",
    "gen_drop_send": "packets the kernel refused to send",
    "gen_drop_overflow": "datagrams the kernel dropped because the socket's buffer was full",
    # GPN, peer to tenant
    "gpn_opened": "ESP packets opened and sent to a tenant",
    "gpn_parked": "ESP packets parked until the keys of their SPI arrive",
    "gpn_drop_park_full": "ESP packets for which the parking buffer had no room",
    "gpn_drop_park_expired": "parked packets whose keys never came",
    "gpn_drop_short": "datagrams too short to be ESP, or of a length that the cipher of their SA cannot make",
    "gpn_esp_returned": "ESP packets that a GIN's kernel passed here by another's SPI, passed back to a GIN",
    "gpn_drop_unknown_spi": "ESP packets with an SPI this node does not hold",
    "gpn_drop_replay": "ESP packets whose sequence number was seen before or is left of the window",
    "gpn_drop_floor": "ESP packets that another process may have opened before (takeover floor of their SA)",
    "gpn_drop_auth": "ESP packets whose ICV is wrong",
    "gpn_drop_padding": "ESP packets whose trailer or padding is wrong",
    "gpn_drop_dummy": "dummy packets (next header 59), discarded as RFC 4303 2.6 asks",
    "gpn_drop_ecn_in": "ESP packets marked as congested around inner ones that cannot be (RFC 6040 4.2)",
    "gpn_drop_inner_in": "opened packets whose inner IP header is malformed, or not of the version announced",
    "gpn_drop_selector_in": "opened packets whose inner addresses are outside the SA's selectors",
    "gpn_drop_no_vtep": "opened packets for an inner destination no VTEP of the tenant serves",
    "gpn_drop_ttl_in": "opened packets whose TTL or hop limit has run out",
    "gpn_drop_limit_in": "opened packets above the rate limit of their tunnel or tenant",
    "gpn_drop_expired": "packets for an SA past its hard lifetime",
    # GPN, tenant to peer
    "gpn_sealed": "tenant packets, and ICMP errors about a peer's, sealed and sent to a peer",
    "gpn_fragmented": "tenant packets cut to fit their tunnel's path, each counted once",
    "gpn_told_too_big": "ICMP errors sent to tenants about packets that may not be cut",
    "gpn_told_ttl": "ICMP errors sent to tenants about packets whose TTL or hop limit has run out",
    "gpn_returned": "tenant packets that came straight from a VTEP and were passed to a GEN",
    "gpn_drop_vxlan_malformed": "VXLAN packets that do not parse",
    "gpn_drop_vxlan_source": "VXLAN packets from neither a GEN nor a VTEP of that tenant",
    "gpn_drop_inner": "inner frames that are neither IPv4 nor IPv6, or whose lengths disagree",
    "gpn_drop_too_big": "tenant packets that may not be cut and are too big for their tunnel's path",
    "gpn_drop_ttl_out": "tenant packets whose TTL or hop limit has run out",
    "gpn_drop_no_gin": 'tenant packets for which no GIN was there to go through (return = "gin")',
    "gpn_drop_no_rule": "tenant packets for which no tunnel is ruled to seal here",
    "gpn_drop_selector_out": "tenant packets whose inner addresses are outside the SA's selectors",
    "gpn_drop_ecn_out": "VXLAN packets marked as congested around inner ones that cannot be (RFC 6040 4.2)",
    "gpn_drop_limit_out": "tenant packets above the rate limit of their tunnel or tenant",
    "gpn_drop_range": "tenant packets dropped because the sealing range is used up",
    "gpn_drop_overflow": "datagrams the kernel dropped because a socket's buffer was full",
    "gpn_drop_tag": "tags that are malformed or whose MAC is wrong",
    "gpn_drop_send": "packets the kernel refused to send",
    # GMN
    "gmn_ike_in": "IKE datagrams received from GINs",
    "gmn_ike_out": "IKE datagrams sent through GINs",
    "gmn_drop_no_gin": "IKE datagrams for which no GIN was connected",
    "gmn_drop_send": "IKE datagrams that the kernel refused to send",
    "gmn_drop_envelope": "envelopes that are malformed or whose MAC is wrong",
    "ike_drop_malformed": "IKE messages that do not parse",
    "ike_drop_unknown_spi": "IKE messages for an IKE_SA that does not exist",
    "ike_drop_integrity": "IKE messages whose integrity check failed",
    "ike_drop_message_id": "IKE messages outside the window, or answers to nothing asked",
    "ike_drop_version": "IKE messages of another major version",
    "ike_drop_unexpected": "IKE messages that are not legal in the state of their IKE_SA",
    "ike_drop_rate": "IKE requests dropped because their tunnel's peer asks too much",
    "ike_drop_half_open": "IKE_SA_INIT requests dropped because too many handshakes are half open",
    "ike_retransmitted": "IKE requests sent again",
    "ike_replayed_response": "stored responses sent again for a retransmitted request",
}


class Counters(dict[str, int]):
    """A count for every name in `TABLE`; adding to any other name raises `KeyError`.

    Increment with `counters["gpn_drop_auth"] += n`, once per batch.
    """

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(TABLE, 0))

    def nonzero(self) -> dict[str, int]:
        """The counters that have counted anything, for reports."""
        return {name: count for name, count in self.items() if count}
