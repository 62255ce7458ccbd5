"""An upstream that is a script, byte for byte, and counts what reaches it.

A script is a list of steps for one connection; the first connection plays the first script, and so on, and the last
script serves all later ones too.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Received:
    """A request as it came."""

    line: str
    headers: list[tuple[str, str]]  # names in lower case
    body: bytes

    def all(self, name: str) -> list[str]:
        return [value for field_name, value in self.headers if field_name == name]


@dataclass(frozen=True)
class Expect:
    """Read one whole request."""


@dataclass(frozen=True)
class ExpectHead:
    """Read a request's head and leave its body where it is."""


@dataclass(frozen=True)
class Send:
    raw: bytes


@dataclass(frozen=True)
class Wait:
    event: asyncio.Event


@dataclass(frozen=True)
class WaitForClose:
    """Until the other side has closed."""


@dataclass(frozen=True)
class Close:
    """FIN."""


@dataclass(frozen=True)
class Reset:
    """RST."""


Step = Expect | ExpectHead | Send | Wait | WaitForClose | Close | Reset


def answer(body: bytes = b"ok", *fields: str, status: str = "200 OK") -> Send:
    """A plain answer with a Content-Length."""
    lines = [f"HTTP/1.1 {status}", *fields, f"Content-Length: {len(body)}"]
    return Send("\r\n".join(lines).encode() + b"\r\n\r\n" + body)


def chunked(*pieces: bytes, end: bool = True) -> Send:
    raw = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return Send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + raw + (b"0\r\n\r\n" if end else b""))


@dataclass
class ScriptedUpstream:
    """`async with ScriptedUpstream([Expect(), answer()]) as upstream:`; the port is then known."""

    scripts: Sequence[Sequence[Step]]
    tls: ssl.SSLContext | None = None
    connections: int = 0
    requests: list[Received] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)  # set when a WaitForClose has seen the close
    finished: asyncio.Event = field(default_factory=asyncio.Event)  # set when a connection has played its script
    port: int = 0

    async def __aenter__(self) -> ScriptedUpstream:
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        script = self.scripts[min(self.connections, len(self.scripts) - 1)]
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._play(script, reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _play(self, script: Sequence[Step], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for step in script:
                match step:
                    case Expect() | ExpectHead():
                        self.requests.append(await _read(reader, with_body=isinstance(step, Expect)))
                    case Send(raw):
                        writer.write(raw)
                        await writer.drain()
                    case Wait(event):
                        await event.wait()
                    case WaitForClose():
                        await _until_closed(reader)
                        self.closed.set()
                    case Close():
                        writer.write_eof()
                    case Reset():
                        sock = writer.get_extra_info("socket")
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        writer.transport.abort()
            self.finished.set()
            await _until_closed(reader)
        except (asyncio.IncompleteReadError, OSError):
            pass  # the other side has gone; the counts tell the rest
        finally:
            writer.close()


async def _until_closed(reader: asyncio.StreamReader) -> None:
    try:
        while await reader.read(65536):
            pass
    except OSError:
        pass


async def _read(reader: asyncio.StreamReader, *, with_body: bool) -> Received:
    line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip("\r\n").split("\r\n")
    headers = [(name.lower(), value.strip()) for name, _, value in (item.partition(":") for item in lines)]
    fields = dict(headers)
    body = b""
    if with_body and fields.get("transfer-encoding") == "chunked":
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    elif with_body:
        body = await reader.readexactly(int(fields.get("content-length", "0")))
    return Received(line, headers, body)
