"""
The one number that code and schema compare.

The schema speaks every protocol from `oldest` to `newest`; `procrastinate.protocol()` tells both.
A release speaks one.
The pre stage of an upgrade raises `newest`, the post stage raises `oldest`, so between the two old
and new workers run side by side.
"""

from __future__ import annotations

from pyprocrastinate.exceptions import ProtocolNotSpoken

PROTOCOL = 1


def check_protocol(oldest: int, newest: int, mine: int = PROTOCOL) -> None:
    """Raise `ProtocolNotSpoken` unless a schema that speaks `oldest` to `newest` can serve us."""
    if not oldest <= mine <= newest:
        raise ProtocolNotSpoken(
            f"the schema {'has retired' if mine < oldest else 'does not speak'} protocol {mine} of this release",
            detail=f"It speaks protocols {oldest} to {newest}.",
            hint="Upgrade pyprocrastinate." if mine < oldest else "Run `pyprocrastinate migrate --stage pre` first.",
        )
