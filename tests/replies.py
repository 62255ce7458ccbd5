"""Reading a reply as a fetch does: through the scribe of a path's dialect, in the chunks that came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from semcache.wire import Frame, Reading, find_address


def read_reply(
    path: str,
    request: bytes,
    reply: bytes | Sequence[bytes],
    headers: Mapping[str, str],
    *,
    status: int = 200,
    whole: bool = True,
    store_tools: bool = False,
    limit_bytes: int = 1 << 20,
) -> tuple[list[Frame], Reading]:
    """Return what would be relayed, which has to be the reply, and the reading. Chunks come a millisecond apart."""
    address = find_address(path)
    assert address is not None
    ask = address.dialect.parse(address, request, {})
    scribe = address.dialect.scribe(ask, status, headers, store_tools=store_tools, limit_bytes=limit_bytes)
    chunks = [reply] if isinstance(reply, bytes) else reply
    frames = [frame for number, chunk in enumerate(chunks) for frame in scribe.feed(chunk, number)]
    last, reading = scribe.finish(whole)
    frames += last
    assert b"".join(frame.raw for frame in frames) == b"".join(chunks)
    return frames, reading
