"""A socket in the file system, for clients on the same machine: its permissions say who may ask.

It is bound under another name and then renamed into its place, so it is never there with other permissions than it
should have, nor before it takes connections, and what a dead process left behind is replaced in one step.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress

from semcache.errors import StartError

BACKLOG = 4096  # connections the kernel holds for us


class UnixSocket:
    """Bound and listening. Processes forked from this one may share it; the one that bound it removes it."""

    def __init__(self, path: str, mode: int) -> None:
        """Raises StartError when the path is in use, is another kind of file, or cannot be written."""
        self.path = path
        _make_way(path)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        own_name = f"{path}.{os.getpid()}"
        try:
            self.sock.setblocking(False)
            with suppress(FileNotFoundError):
                os.unlink(own_name)
            self.sock.bind(own_name)
            os.chmod(own_name, mode)
            self.sock.listen(BACKLOG)
            self._inode = os.stat(own_name).st_ino
            os.rename(own_name, path)
        except OSError as exc:
            self.sock.close()
            with suppress(OSError):
                os.unlink(own_name)
            raise StartError(f'server.unix_socket: cannot listen on "{path}": {exc.strerror or exc}') from exc

    def close(self) -> None:
        """Take no more connections here; others who share the socket go on."""
        self.sock.close()

    def remove(self) -> None:
        """Close it and take it out of the file system, unless another has taken its place."""
        self.close()
        with suppress(OSError):
            if os.stat(self.path).st_ino == self._inode:
                os.unlink(self.path)


def _make_way(path: str) -> None:
    """See that nothing is at the path but, perhaps, what a dead process left there. Raises StartError."""
    try:
        found = os.lstat(path)
    except OSError:
        return  # binding says what is wrong, if something is
    if not stat.S_ISSOCK(found.st_mode):
        raise StartError(f'server.unix_socket: "{path}" is there already, and is no socket')
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except OSError as exc:
            if exc.errno in (errno.ECONNREFUSED, errno.ENOENT):
                return
            raise StartError(f'server.unix_socket: "{path}" is in use, or not ours: {exc.strerror or exc}') from exc
    raise StartError(f'server.unix_socket: another process listens on "{path}"')
