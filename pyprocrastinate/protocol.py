"""
The one number that code and schema compare.

The schema speaks every protocol from `oldest` to `newest`; `procrastinate.protocol()` tells both.
A release speaks one.
The pre stage of an upgrade raises `newest`, the post stage raises `oldest`, so between the two old and new workers
run side by side.
"""

from __future__ import annotations

PROTOCOL = 1


class ProtocolError(Exception):
    """The schema does not speak this release's protocol; the message says which side to upgrade."""

    sqlstate = "JQ005"


def check_protocol(oldest: int, newest: int, mine: int = PROTOCOL) -> None:
    """Raise `ProtocolError` unless a schema that speaks `oldest` to `newest` can serve this code."""
    spoken = f"protocol {newest}" if oldest == newest else f"protocols {oldest} to {newest}"
    if mine < oldest:
        raise ProtocolError(
            f"the schema has retired protocol {mine}, which this release of pyprocrastinate speaks: it speaks "
            f"{spoken}. Upgrade pyprocrastinate"
        )
    if mine > newest:
        raise ProtocolError(
            f"this release of pyprocrastinate speaks protocol {mine}, the schema only {spoken}. "
            "Run `pyprocrastinate migrate --stage pre`"
        )
