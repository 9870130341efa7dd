"""No message shows key material in any form of text; a new type of message is covered by itself."""

from __future__ import annotations

import types
import typing

import msgspec
import pytest
from rich.pretty import pretty_repr

from protego_cli.control.channel import desired_records, node_messages, operator_messages, pool_messages
from protego_cli.control.channel.message import SECRETS, Message, Record, Reply, Request
from protego_cli.control.channel.messages import AnyReply, AnyRequest

SECRET = b"\xde\xad key material \xbe\xef"
PUBLIC_BYTES = {"mac", "gateway_mac", "start", "end"}
ADDRESS = b"\x0a\0\0\1"


def structs() -> list[type[msgspec.Struct]]:
    bases = {Message, Record, Request, Reply}
    found = [
        value
        for module in (desired_records, node_messages, operator_messages, pool_messages)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, msgspec.Struct) and value not in bases
    ]
    assert len(found) > 25
    return list(dict.fromkeys(found))


def sample(kind: object) -> object:
    """A value of this type; every bytes in it that its name does not make public is SECRET."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return sample(arguments[0])
    if origin is typing.Literal:
        return arguments[0]
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            members = typing.get_args(arguments[0]) if is_union(arguments[0]) else (arguments[0],)
            return tuple(sample(member) for member in members)
        return tuple(sample(argument) for argument in arguments)
    if origin is dict:
        return {sample(arguments[0]): sample(arguments[1])}
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = typing.get_type_hints(kind)
        fields = kind.__struct_fields__
        return kind(**{name: ADDRESS if name in PUBLIC_BYTES else sample(hints[name]) for name in fields})
    simple: dict[object, object] = {
        bytes: SECRET,
        str: "text",
        int: 7,
        float: 0.5,
        bool: True,
        type(None): None,
    }
    return simple[kind]


def is_union(kind: object) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def secret_fields(kind: type[msgspec.Struct]) -> set[str]:
    hints = typing.get_type_hints(kind)
    return {name for name in kind.__struct_fields__ if hints[name] is bytes} - PUBLIC_BYTES


@pytest.mark.parametrize("kind", structs(), ids=lambda kind: kind.__name__)
def test_no_message_shows_a_key(kind: type[msgspec.Struct]) -> None:
    value = sample(kind)
    for text in (repr(value), str(value), f"{value}", pretty_repr(value)):
        assert "key material" not in text
        assert SECRET.hex() not in text


def test_every_secret_field_is_named() -> None:
    found = set().union(*(secret_fields(kind) for kind in structs()))
    joining = {"token", "secret"}  # a text, and one of joining.py: tests/test_joining.py looks at them
    assert found | joining == SECRETS


def test_a_sync_holds_secrets_to_hide() -> None:
    """The test above proves nothing if its samples hold none."""
    assert SECRET in msgspec.msgpack.encode(sample(node_messages.Sync))


@pytest.mark.parametrize("message", [AnyRequest, AnyReply])
def test_decoding_errors_do_not_quote(message: object) -> None:
    data = msgspec.msgpack.encode(
        {"type": "Welcome", "epoch": "key material", "envelope_key": "key material"}
    )
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.msgpack.decode(data, type=message)
    assert "key material" not in str(caught.value)
