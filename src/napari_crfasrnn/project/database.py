"""The project's database: schema, transactions, and the lock that lets one program write at a time."""

from __future__ import annotations

import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

DATABASE = "project.sqlite"
LOCK = "project.lock"
SCHEMA_VERSION = 1
_BUSY_SECONDS = 10.0

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE classes (value INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, color TEXT NOT NULL);
CREATE TABLE items (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,
    axes TEXT NOT NULL,
    shape TEXT NOT NULL,
    dtype TEXT NOT NULL,
    spacing TEXT NOT NULL,
    units TEXT NOT NULL,
    metadata TEXT NOT NULL,
    stack_shape TEXT NOT NULL,
    plane_shape TEXT NOT NULL,
    has_baseline INTEGER NOT NULL,
    image_file TEXT NOT NULL,
    created TEXT NOT NULL,
    modified TEXT NOT NULL
);
CREATE TABLE planes (
    item_id INTEGER NOT NULL REFERENCES items (id) ON DELETE CASCADE,
    kind TEXT NOT NULL CHECK (kind IN ('labels', 'baseline', 'verified')),
    plane INTEGER NOT NULL,
    file TEXT NOT NULL,
    digest TEXT NOT NULL,
    PRIMARY KEY (item_id, kind, plane)
);
CREATE TABLE rounds (
    number INTEGER PRIMARY KEY,
    created TEXT NOT NULL,
    report TEXT NOT NULL,
    model_file TEXT NOT NULL
);
CREATE TABLE events (id INTEGER PRIMARY KEY, time TEXT NOT NULL, action TEXT NOT NULL, detail TEXT NOT NULL);
"""


def now() -> str:
    """Return the time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def create_database(folder: Path) -> None:
    """Create an empty database in a folder, in one transaction."""
    connection = sqlite3.connect(folder / DATABASE, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA.split(";"):
            connection.execute(statement)
        connection.execute("INSERT INTO meta VALUES ('schema_version', ?)", (str(SCHEMA_VERSION),))
        connection.execute("INSERT INTO meta VALUES ('created', ?)", (now(),))
        connection.execute("INSERT INTO meta VALUES ('id', ?)", (secrets.token_hex(16),))
        connection.execute("COMMIT")
    finally:
        connection.close()


class Database:
    """One connection, used by one thread at a time.

    Parameters
    ----------
    folder
        The project's folder.
    read_only
        Open without the right to write.

    Raises
    ------
    ValueError
        If the folder holds no project, a damaged one, or one of a newer version.
    """

    def __init__(self, folder: Path, *, read_only: bool) -> None:
        self.guard = threading.RLock()
        self._folder = folder
        self._connection: sqlite3.Connection | None = None
        try:
            self._connection = self._connect(read_only)
            self._check_version()
        except sqlite3.DatabaseError as error:
            self.close()
            raise ValueError(
                f"path must be a project folder, but the {DATABASE} in {folder} cannot be read ({error}): "
                "open a copy of the project"
            ) from error
        except ValueError:
            self.close()
            raise

    def _connect(self, read_only: bool) -> sqlite3.Connection:
        path = self._folder / DATABASE
        mode = "ro" if read_only else "rw"

        def connect(options: str) -> sqlite3.Connection:
            return sqlite3.connect(
                f"{path.absolute().as_uri()}?{options}",
                uri=True,
                isolation_level=None,
                timeout=_BUSY_SECONDS,
                check_same_thread=False,
            )

        connection = connect(f"mode={mode}")
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            if not read_only:
                connection.execute("PRAGMA synchronous = FULL")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError:
            connection.close()
            if not read_only:
                raise
            # On a medium that cannot be written, SQLite cannot set up the log's shared memory.
            connection = connect("mode=ro&immutable=1")
        return connection

    def _check_version(self) -> None:
        if not self.rows("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'meta'"):
            raise ValueError(
                f"path must be a project folder, but the {DATABASE} in {self._folder} is no project"
            )
        found = self.rows("SELECT value FROM meta WHERE key = 'schema_version'")
        version = int(found[0][0]) if found else 0
        if version > SCHEMA_VERSION:
            raise ValueError(
                f"the project at {self._folder} has format {version}, but this version of napari-crfasrnn "
                f"reads formats up to {SCHEMA_VERSION}: update napari-crfasrnn"
            )

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make all statements inside durable together, or none of them."""
        with self.guard:
            self.execute("BEGIN IMMEDIATE")
            with ExitStack() as undo:
                undo.callback(self._roll_back)
                yield
                self.execute("COMMIT")
                undo.pop_all()

    def _roll_back(self) -> None:
        with suppress(sqlite3.OperationalError):  # a full disk may have rolled back already
            self.execute("ROLLBACK")

    def execute(self, statement: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        """Run one statement."""
        with self.guard:
            return self._open_connection().execute(statement, values)

    def rows(self, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Run a query and return all its rows."""
        with self.guard:
            return self._open_connection().execute(statement, values).fetchall()

    def copy_to(self, folder: Path) -> None:
        """Write a consistent copy into another folder."""
        with self.guard:
            copy = sqlite3.connect(folder / DATABASE, isolation_level=None)
            try:
                self._open_connection().backup(copy)
                copy.execute("PRAGMA journal_mode = WAL")
                copy.execute("PRAGMA synchronous = FULL")
            finally:
                copy.close()

    def close(self) -> None:
        """Close the connection; the log is folded into the database."""
        with self.guard:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _open_connection(self) -> sqlite3.Connection:
        if self._connection is None:
            raise ValueError(f"the project at {self._folder} is closed: open it again with Project.open")
        return self._connection


class WriterLock:
    """The right to write to a folder, a project's above all, held by one at a time, in any process.

    It is the exclusive lock that SQLite takes on an otherwise empty database. The operating system gives
    it back when the process ends, however it ends, so a crash never leaves a folder locked.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    def acquire(cls, folder: Path, name: str = LOCK) -> tuple[WriterLock | None, str | None]:
        """Take the lock that a file of the folder stands for, or return None and why it cannot be had."""
        connection: sqlite3.Connection | None = None
        try:
            connection = sqlite3.connect(
                folder / name, isolation_level=None, timeout=0, check_same_thread=False
            )
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if connection is not None:
                connection.close()
            if "locked" in str(error):
                return None, "it is open in another window or program"
            return None, f"its folder cannot be written ({error})"
        return cls(connection), None

    def release(self) -> None:
        """Give the right back."""
        self._connection.close()
