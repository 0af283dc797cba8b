"""A real PostgreSQL on a free loopback port, for tests; its data are gone when it is closed.

``python tests/postgres/server.py`` runs one in the foreground and prints its URL.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg

INSTALL = "needs PostgreSQL's server: apt-get install postgresql"
_DEBIAN = "/usr/lib/postgresql"  # Debian keeps initdb and postgres out of PATH
# Tests want speed and keep nothing: what is lost by a power cut is lost.
_SETTINGS = ("fsync=off", "full_page_writes=off", "shared_buffers=32MB", "max_connections=40")


def missing_tools() -> str | None:
    """What keeps a server from running here, or None."""
    if _tool("initdb") is None or _tool("postgres") is None:
        return INSTALL
    if os.geteuid() == 0 and (_account() is None or shutil.which("setpriv") is None):
        return "PostgreSQL refuses to run as root, and there is no account postgres or nobody, or no setpriv"
    return None


class Server:
    """One server; its files belong to `postgres` or `nobody` when the tests run as root."""

    def __init__(self) -> None:
        # Not pytest's folder: root's is closed to the account that the server must run as.
        self.folder = Path(tempfile.mkdtemp(prefix="ks4-postgres-"))
        self.port = _free_port()
        self._process: subprocess.Popen | None = None
        if os.geteuid() == 0:
            account = _account()
            os.chown(self.folder, account.pw_uid, account.pw_gid)
        options = ["-A", "trust", "-U", "ks4", "-E", "UTF8", "--locale=C", "--no-sync"]
        done = subprocess.run(
            _as_account([_tool("initdb"), "-D", str(self.folder / "data"), *options]),
            capture_output=True,
            text=True,
            cwd=self.folder,
            check=False,
        )
        if done.returncode:
            self.close()
            raise RuntimeError(f"initdb failed:\n{done.stdout}{done.stderr}")

    def url(self, name: str = "postgres") -> str:
        """The URL of a database, as ``--database`` takes it."""
        return f"postgresql://ks4@127.0.0.1:{self.port}/{name}"

    def create(self, name: str) -> str:
        """Make an empty database and return its URL."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def start(self) -> None:
        """Start the server on its data and wait until it answers."""
        settings = [f"-c{setting}" for setting in _SETTINGS]
        words = [
            "-D",
            str(self.folder / "data"),
            "-h",
            "127.0.0.1",
            "-p",
            str(self.port),
            "-k",
            str(self.folder),
        ]
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                _as_account([_tool("postgres"), *words, *settings]), cwd=self.folder, stdout=log, stderr=log
            )
        for _ in range(300):
            try:
                psycopg.connect(self.url(), connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None:
                    break
                time.sleep(0.1)
        raise RuntimeError(f"PostgreSQL does not answer:\n{(self.folder / 'log').read_text()[-2000:]}")

    def stop(self) -> None:
        """Stop the server at once, its clients cut off; the data stay."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # fast shutdown: no waiting for clients
            self._process.wait(timeout=30)
            self._process = None

    def close(self) -> None:
        """Stop the server and remove its data."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def _tool(name: str) -> str | None:
    newest_first = sorted(Path(_DEBIAN).glob("*/bin"), key=lambda path: -float(path.parent.name))
    places = os.pathsep.join([os.environ.get("PATH", ""), *map(str, newest_first)])
    return shutil.which(name, path=places)


def _account() -> pwd.struct_passwd | None:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


def _as_account(command: list[str]) -> list[str]:
    """The command as an account other than root: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return command
    account = _account()
    # no shell in between, so that signals reach the server itself
    ids = [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
    return ["setpriv", *ids, "--", *command]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    """Run a server until interrupted."""
    problem = missing_tools()
    if problem:
        raise SystemExit(problem)
    server = Server()
    try:
        server.start()
        sys.stdout.write(server.url() + "\n")
        sys.stdout.flush()
        signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        server.close()


if __name__ == "__main__":
    main()
