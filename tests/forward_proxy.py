"""A small HTTP proxy on a real socket: tunnels, and requests in absolute form. It notes what it could read."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field


@dataclass
class ForwardProxy:
    """`async with ForwardProxy() as proxy:`; the port is then known.

    Names that only this proxy knows are in `names`. `credentials`: asked for as Basic, already encoded. `answer`: sent
    instead of what a proxy would do.
    """

    names: dict[str, str] = field(default_factory=dict)
    credentials: str | None = None
    answer: bytes | None = None
    tls: ssl.SSLContext | None = None
    heads: list[list[str]] = field(default_factory=list)  # the lines of each request it could read
    port: int = 0

    async def __aenter__(self) -> ForwardProxy:
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def lines(self) -> list[str]:
        return [head[0] for head in self.heads]

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await self._head(reader)
            if self.answer is not None:
                writer.write(self.answer)
                await writer.drain()
            elif self.credentials is not None and f"Proxy-Authorization: Basic {self.credentials}" not in head:
                writer.write(b"HTTP/1.1 407 Who are you\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n")
                await writer.drain()
            else:
                await self._forward(head, reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _forward(self, head: list[str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method, url, _ = head[0].split(" ")
        authority = url if method == "CONNECT" else url.removeprefix("http://").partition("/")[0]
        host, _, port = authority.rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(self.names.get(host, host.strip("[]")), int(port))
        back = asyncio.get_running_loop().create_task(_pump(far_reader, writer))
        try:
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 Connection established\r\nContent-Length: 0\r\n\r\n")
                await _pump(reader, far_writer)
            else:
                while True:
                    await self._pass_on(head, authority, reader, far_writer)
                    head = await self._head(reader)
        finally:
            back.cancel()
            far_writer.close()

    async def _pass_on(
        self, head: list[str], authority: str, reader: asyncio.StreamReader, far: asyncio.StreamWriter
    ) -> None:
        kept = [line for line in head if not line.lower().startswith("proxy-")]
        kept[0] = kept[0].replace(f"http://{authority}", "", 1)
        fields = dict(line.lower().split(": ", 1) for line in head[1:])
        body = await reader.readexactly(int(fields.get("content-length", "0")))
        far.write("\r\n".join([*kept, "", ""]).encode() + body)
        await far.drain()

    async def _head(self, reader: asyncio.StreamReader) -> list[str]:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().removesuffix("\r\n\r\n").split("\r\n")
        self.heads.append(head)
        return head


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()
