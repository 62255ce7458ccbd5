"""TLS on the port: which certificate is shown, and how a connection gets from accepted to encrypted.

A certificate that is renewed on disk is shown to the connections that come after it; those that are open go on. A pair
that does not fit, or is half written, changes nothing: the one before is shown until the files make sense again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Callable

from semcache import config
from semcache.errors import StartError

log = logging.getLogger(__name__)

# The layer that encrypts keeps its own buffer, half a megabyte by default, in front of the socket's.
WRITE_BUFFER_BYTES = 16 * 1024
REST_S = 1.0  # when the machine is out of files

_Stamp = tuple[tuple[int, int, int] | None, ...]


class Certificates:
    """The certificate and key that are shown, as they are on disk."""

    def __init__(self, settings: config.Tls) -> None:
        """Raises StartError when the files are no such pair."""
        self._settings = settings
        self._stamp = self._look()
        self._shown = _load(settings)
        self.context = _load(settings)
        # A connection swaps to the newest pair during its handshake. Loading a pair into a context that is in use
        # could fail between the certificate and its key, and leave it with neither.
        self.context.sni_callback = self._show

    def _show(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = self._shown

    def refresh(self) -> None:
        """Look whether the files have changed, and show what is in them now if it is sound."""
        stamp = self._look()
        if stamp == self._stamp:
            return
        self._stamp = stamp  # taken before the files are read: what changes meanwhile is seen the next time
        try:
            self._shown = _load(self._settings)
        except StartError as exc:
            log.warning("the certificate in use is kept: %s", exc.message)
        else:
            log.info("a new certificate is in use: %s", self._settings.certificate)

    def _look(self) -> _Stamp:
        """What tells a changed file, links followed: a renewal may rename a link, or write the same size anew."""
        return tuple(_stamp(path) for path in (self._settings.certificate, self._settings.key))


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _load(settings: config.Tls) -> ssl.SSLContext:
    """Raises StartError."""
    for name, path in (("certificate", settings.certificate), ("key", settings.key)):
        try:
            with open(path, "rb") as file:
                content = file.read()
        except OSError as exc:
            raise StartError(f'server.tls.{name}: "{path}" cannot be read: {exc.strerror}') from exc
        if b"-----BEGIN " not in content:
            raise StartError(f'server.tls.{name}: "{path}" is not a PEM file')
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])

    def refuse() -> str:  # else OpenSSL asks for it on the terminal
        raise StartError(
            f'server.tls.key: "{settings.key}" is encrypted, and nobody is there to type its passphrase: '
            f"write a copy without one (openssl pkey -in {settings.key} -out FILE) that only semcache may read"
        )

    try:
        context.load_cert_chain(settings.certificate, settings.key, password=refuse)
    except ssl.SSLError as exc:
        if exc.reason == "KEY_VALUES_MISMATCH":
            raise StartError(
                f'server.tls: the key "{settings.key}" does not belong to the certificate "{settings.certificate}"; '
                "the server's own certificate comes first in its file, before those that vouch for it"
            ) from exc
        raise StartError(
            f'server.tls: "{settings.certificate}" and "{settings.key}" are no certificate and key: {exc.reason}'
        ) from exc
    return context


class TlsServer:
    """Accepts connections on one socket and hands on those that are encrypted.

    Accepting is ours here, and not the event loop's, because a connection that never shakes hands would be nobody's:
    not counted, and not below the cap on open files.
    """

    def __init__(
        self,
        sock: socket.socket,
        certificates: Certificates,
        protocol: Callable[[], asyncio.Protocol],
        handshake_s: float,
        shutdown_s: float,
        has_room: Callable[[int], bool],
        refused: Callable[[str], None],
        out_of_files: Callable[[OSError], None],
    ) -> None:
        """`shutdown_s`: for the client to take what is left and say goodbye. `has_room`: whether one may come, with
        so many others shaking hands. `refused`: counts by reason."""
        self._sock = sock
        self._certificates = certificates
        self._protocol = protocol
        self._handshake_s = max(0.1, handshake_s)
        self._shutdown_s = max(0.1, shutdown_s)
        self._has_room = has_room
        self._refused = refused
        self._out_of_files = out_of_files
        self._handshakes: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.get_running_loop().create_task(self._accept())

    def close(self) -> None:
        """Accept no more, and give up the handshakes under way: nothing was asked on those connections yet."""
        self._accepting.cancel()
        for handshake in self._handshakes:
            handshake.cancel()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    sock, _ = await loop.sock_accept(self._sock)
                except ConnectionError:  # gone again before it was accepted
                    continue
                except OSError as exc:
                    self._out_of_files(exc)
                    await asyncio.sleep(REST_S)
                    continue
                if not self._has_room(len(self._handshakes)):
                    self._refused("connections")
                    sock.close()
                    continue
                handshake = loop.create_task(self._shake_hands(sock))
                self._handshakes.add(handshake)
                handshake.add_done_callback(self._handshakes.discard)
        finally:
            self._sock.close()

    async def _shake_hands(self, sock: socket.socket) -> None:
        try:
            transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
                self._protocol,
                sock,
                ssl=self._certificates.context,
                ssl_handshake_timeout=self._handshake_s,
                ssl_shutdown_timeout=self._shutdown_s,
            )
        except OSError:  # of TLS, of the connection, or of time. Scanners and health checks do it all day: no log line
            self._refused("handshake")
        else:
            transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
