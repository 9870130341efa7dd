"""Tags: what nodes of the fabric say to one another beside packets.

A tag is a UDP datagram on a GPN's ESP port, or on the VXLAN port of a GPN or GEN, whose first four bytes
are an SPI of 1-255 (reserved, RFC 4303 2.1, so never ESP; and a VXLAN header without its I flag, so never
VXLAN). Layout, network order:

     0        4         12       14     16                 32
     | kind   | nonce   | length | port | MAC (16)         | address (4 or 16) | packet
     
`length` is that of the address (0, 4 or 16); `port` and address are the outer source for ORIGIN, else 0.
The MAC is HMAC-SHA-256 under the pair's key, truncated to 16 bytes, over the header without the MAC, the
address and the first 16 bytes of the packet (its ESP header: the rest is authenticated by ESP itself).

Kinds: PROBE and PROBE_ECHO (the heartbeat), BARRIER and BARRIER_ECHO (all before it has been sent on),
ORIGIN (a packet follows whose outer source differs from the one steered).
"""
