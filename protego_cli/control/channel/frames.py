"""Frames of the control channel: bytes on a stream <-> (kind, id, message). Sans-IO.

     0        4
     | length | msgpack [kind, id, body] |

`length` counts what follows it, big-endian. `kind` is 0 for a request and 1 for a reply, which bears its
request's `id`; `body` is one of `messages.py`. A length above the limit is refused on sight of its four
bytes; whatever else does not decode is `Malformed`, and nothing else leaves here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from protego_cli.control.channel.message import Reply, Request
from protego_cli.control.channel.messages import AnyReply, AnyRequest
from protego_cli.errors import Malformed

NODE_LIMIT: Final = 1 << 20  # what a GMN takes from a node or an operator
GMN_LIMIT: Final = 64 << 20  # what is taken from an authenticated GMN: a Sync may be large

REQUEST: Final = 0
REPLY: Final = 1

_LENGTH = struct.Struct("!I")
_encoder = msgspec.msgpack.Encoder()
_envelope_decoder = msgspec.msgpack.Decoder(tuple[int, int, msgspec.Raw])
_request_decoder: msgspec.msgpack.Decoder[AnyRequest] = msgspec.msgpack.Decoder(AnyRequest)
_reply_decoder: msgspec.msgpack.Decoder[AnyReply] = msgspec.msgpack.Decoder(AnyReply)


class Frame(NamedTuple):
    id: int
    message: AnyRequest | AnyReply  # its class tells a request from a reply


def encode(identifier: int, message: Request | Reply) -> bytes:
    """One frame, length included."""
    frame = bytearray(_LENGTH.size)
    kind = REPLY if isinstance(message, Reply) else REQUEST
    _encoder.encode_into((kind, identifier, message), frame, _LENGTH.size)
    _LENGTH.pack_into(frame, 0, len(frame) - _LENGTH.size)
    return bytes(frame)


def decode(body: bytes) -> Frame:
    """The content of one frame, without its length. Raises Malformed."""
    try:
        kind, identifier, raw = _envelope_decoder.decode(body)
        if kind == REQUEST:
            return Frame(identifier, _request_decoder.decode(raw))
        if kind == REPLY:
            return Frame(identifier, _reply_decoder.decode(raw))
    except (ValueError, RecursionError) as error:  # what msgspec raises: its own errors are ValueErrors
        raise Malformed("a frame does not decode") from error
    raise Malformed("a frame is neither request nor reply")


class FrameBuffer:
    """Cuts a stream into frames. Holds at most one frame of `limit` bytes and what came behind it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that `data` completes. Raises Malformed; the stream is of no use then."""
        buffer = self._buffer
        buffer += data
        while len(buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer)
            if length > self._limit:
                raise Malformed(f"a frame of {length} bytes is above the limit of {self._limit}")
            end = _LENGTH.size + length
            if len(buffer) < end:
                return
            body = bytes(buffer[_LENGTH.size : end])
            del buffer[:end]
            yield decode(body)
