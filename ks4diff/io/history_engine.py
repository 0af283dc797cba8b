"""Connections to the history: SQLite or PostgreSQL, one writer at a time, and what an outage is."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from ks4diff.io.history_tables import META, METADATA, VERSION
from ks4diff.products.errors import ConfigError, HistoryUnavailable, InputError

log = logging.getLogger(__name__)

_LOCK = 0x6B733464696666  # "ks4diff": the key of PostgreSQL's advisory lock
_BUSY_S = 60  # a writer waits this long for another, then its exposure queues: one takes about a second
# A server that is gone without a word is noticed after 30 s, not after the kernel's two hours.
_NETWORK = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
# What a server says that is not there just now; other refusals (password, no such database) are for people.
_PASSING = re.compile(r"starting up|shutting down|recovery|terminating|too many|remaining connection", re.I)


def history_url(database: str | None, out: Path) -> sa.URL:
    """Return where the history is: ``--database``, or ks4diff.db in the run's folder.

    Raises
    ------
    ConfigError
        When the URL is malformed, of another kind of database, or its driver is not installed.

    """
    if database is None:
        return sa.URL.create("sqlite", database=str(out / "ks4diff.db"))
    try:
        url = sa.make_url(database)
    except sa.exc.ArgumentError:
        raise ConfigError(
            f"--database {database!r}: write postgresql://USER@HOST/NAME or sqlite:///FILE"
        ) from None
    if url.get_backend_name() == "sqlite":
        if not url.database:
            raise ConfigError(f"--database {database!r}: a history in memory would be lost; name a file")
        return sa.URL.create("sqlite", database=url.database)
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise ConfigError(f"--database {database!r}: only postgresql:// and sqlite:/// are supported")
    try:
        import psycopg  # noqa: F401 - only to say it early when it is missing
    except ImportError:
        raise ConfigError("PostgreSQL needs its driver: pip install 'ks4diff[postgres]'") from None
    return url.set(drivername="postgresql+psycopg")


class Database:
    """An engine, its tables made at the first use: a server that is away is no reason not to start."""

    def __init__(self, url: sa.URL) -> None:
        self.url = url
        self.name = url.render_as_string(hide_password=True)
        self.path = Path(url.database) if url.get_backend_name() == "sqlite" else None
        self.is_sqlite = url.get_backend_name() == "sqlite"
        options = {"timeout": float(_BUSY_S)} if self.is_sqlite else _NETWORK
        # NullPool: no connection outlives its use, so files can be moved and servers restarted.
        self._engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args=options)
        self._ready = False
        if self.is_sqlite:
            sa.event.listen(self._engine, "connect", _leave_transactions_to_us)
            sa.event.listen(self._engine, "begin", _begin)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Yield a connection that sees one state of the history."""
        with self._outages():
            self._prepare()
            with self._engine.connect() as connection:
                if not self.is_sqlite:
                    connection = connection.execution_options(isolation_level="REPEATABLE READ")
                with connection.begin():
                    yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """Yield the only connection that writes just now; all of the body is stored, or nothing."""
        with self._outages():
            self._prepare()
            with self._locked() as connection:
                yield connection

    @contextmanager
    def _locked(self) -> Iterator[sa.Connection]:
        with self._engine.connect() as connection:
            connection = connection.execution_options(immediate=True)
            with connection.begin():
                if not self.is_sqlite:
                    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{_BUSY_S}s'")
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
                yield connection

    def _prepare(self) -> None:
        """Make the tables, once, under the writer's lock: two that start together would make them twice."""
        if self._ready:
            return
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked() as connection:
            METADATA.create_all(connection)
            found = connection.execute(sa.select(META.c.version)).scalars().all()
            if not found:
                connection.execute(sa.insert(META).values(version=VERSION))
            elif found != [VERSION]:
                raise InputError(f"{self.name}: a history of version {found}, this is {VERSION}")
        self._ready = True

    @contextmanager
    def _outages(self) -> Iterator[None]:
        """Turn what a database says into our errors: away for now, or not to be used."""
        try:
            yield
        except (sa.exc.OperationalError, sa.exc.InterfaceError) as error:
            detail = " ".join(str(error.orig).split())
            if "FATAL" in detail and not _PASSING.search(detail):
                raise ConfigError(f"{self.name}: {detail}") from error
            raise HistoryUnavailable(f"{self.name}: {detail}") from error
        except sa.exc.DatabaseError as error:
            if error.connection_invalidated:
                raise HistoryUnavailable(f"{self.name}: {error.orig}") from error
            if self._ready:
                raise
            raise InputError(f"{self.name}: not a usable history ({error.orig})") from error


def _leave_transactions_to_us(connection, _record) -> None:
    connection.isolation_level = None  # sqlite3 would begin late, and only before it writes


def _begin(connection: sa.Connection) -> None:
    # IMMEDIATE takes the lock before the first look: two that look first and write later both fail
    immediate = connection.get_execution_options().get("immediate", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
