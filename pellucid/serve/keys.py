"""Keys of a server, what each may do and has used, in a database that survives whatever happens to the server.

A key is `pk-ID-SECRET`. Of the secret only its SHA-256 is kept: it is 192 random bits, so nothing slower is needed to keep it from being guessed.
"""
from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from pellucid.errors import BadRequest, PellucidError

SCOPES = ("generate", "embed", "tokens", "metrics")  # models may be listed with any key
USUAL = ("generate", "embed", "tokens")
FRESH_SECONDS = 2.0  # how old what is known of keys may be: a revoked one is refused that soon
NEW_SECONDS = 0.05  # the same where a key is shown that is not known: it may just have been made
MINUTE = 60.0

_TABLES = sa.MetaData()
_KEYS = sa.Table(
    "keys", _TABLES, sa.Column("id", sa.String(16), primary_key=True), sa.Column("name", sa.String(200), nullable=False, unique=True),
    sa.Column("sha256", sa.String(64), nullable=False), sa.Column("scopes", sa.String(200), nullable=False),
    sa.Column("requests_per_minute", sa.Integer), sa.Column("tokens_per_minute", sa.Integer), sa.Column("created", sa.Float, nullable=False),
    sa.Column("expires", sa.Float), sa.Column("revoked", sa.Float))
_USAGE = sa.Table(
    "usage", _TABLES, sa.Column("key_id", sa.String(16), primary_key=True), sa.Column("model", sa.String(300), primary_key=True),
    sa.Column("day", sa.String(10), primary_key=True), sa.Column("requests", sa.Integer, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False), sa.Column("completion_tokens", sa.BigInteger, nullable=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key as it stands; times are seconds since 1970, None = never; limits None = none."""

    id: str
    name: str
    sha256: str = field(repr=False)
    scopes: tuple[str, ...]
    requests_per_minute: int | None
    tokens_per_minute: int | None
    created: float
    expires: float | None
    revoked: float | None

    def why_not(self, now: float) -> str | None:
        """Why it opens nothing; None where it does."""
        if self.revoked is not None:
            return "was revoked"
        return "has expired" if self.expires is not None and now >= self.expires else None


def home() -> str:
    """Where keys are kept unless said otherwise: a file of the user's own."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return f"sqlite:///{Path(base) / 'pellucid' / 'keys.db'}"


class Keys:
    """The keys at an address SQLAlchemy understands: sqlite:///FILE, postgresql://... Raises PellucidError where it cannot be opened."""

    def __init__(self, url: str | None = None) -> None:
        self.url = url or home()
        try:
            parsed = sa.make_url(self.url)
            if parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:"):
                folder = Path(str(parsed.database)).parent
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._engine = sa.create_engine(parsed)
            if parsed.get_backend_name() == "sqlite":
                sa.event.listen(self._engine, "connect", _sqlite)
            _TABLES.create_all(self._engine)
        except (sa.exc.SQLAlchemyError, ImportError, OSError) as error:
            raise PellucidError(f"the database of keys {self.url!r} cannot be opened: {error}. Expected sqlite:///FILE, or another address "
                                f"that SQLAlchemy knows and has a driver for") from None

    def add(self, name: str, *, scopes: Sequence[str] = USUAL, requests_per_minute: int | None = None, tokens_per_minute: int | None = None,
            expires: float | None = None) -> tuple[Key, str]:
        """A new key, and the only time its secret is told. Raises BadRequest for a name that is taken or a scope there is none of."""
        if not name.strip() or len(name) > 200:
            raise BadRequest(f"a key wants a name of 1 to 200 characters, got {name!r:.80}", field="name")
        if wrong := [scope for scope in scopes if scope not in SCOPES]:
            raise BadRequest(f"{wrong[0]!r} is not a scope; there are {', '.join(SCOPES)}", field="scope")
        if not scopes:
            raise BadRequest(f"a key without a scope opens nothing; there are {', '.join(SCOPES)}", field="scope")
        for what, limit in (("requests_per_minute", requests_per_minute), ("tokens_per_minute", tokens_per_minute)):
            if limit is not None and limit < 1:
                raise BadRequest(f"{what}={limit} is out of range: at least 1, or nothing for no limit", field=what)
        key_id, secret = secrets.token_hex(4), secrets.token_urlsafe(24)
        key = Key(id=key_id, name=name, sha256=_hash(secret), scopes=tuple(dict.fromkeys(scopes)), requests_per_minute=requests_per_minute,
                  tokens_per_minute=tokens_per_minute, created=time.time(), expires=expires, revoked=None)
        row = {column.name: getattr(key, column.name) for column in _KEYS.columns} | {"scopes": " ".join(key.scopes)}
        try:
            with self._engine.begin() as connection:
                connection.execute(_KEYS.insert(), row)
        except sa.exc.IntegrityError:
            raise BadRequest(f"there is a key called {name!r} already. Choose another name, or revoke it first", field="name") from None
        return key, f"pk-{key_id}-{secret}"

    def all(self) -> list[Key]:
        """The oldest first, revoked ones too."""
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(_KEYS).order_by(_KEYS.c.created)).mappings().all()
        return [Key(**{**row, "scopes": tuple(row["scopes"].split())}) for row in rows]

    def revoke(self, which: str) -> Key:
        """By id or name. Its usage stays, and its name is free again. Raises BadRequest where there is none."""
        found = [key for key in self.all() if which in (key.id, key.name) and key.revoked is None]
        if not found:
            raise BadRequest(f"there is no key {which!r} in use. `pellucid keys list` shows them", field="key")
        with self._engine.begin() as connection:
            connection.execute(_KEYS.update().where(_KEYS.c.id == found[0].id).values(revoked=time.time(), name=f"{found[0].name} ({found[0].id}, revoked)"))
        return found[0]

    def used(self, key_id: str, model: str, prompt_tokens: int, completion_tokens: int) -> None:
        """Adds a request's tokens, of today (UTC), and has them on the disk before it returns."""
        row = {"key_id": key_id, "model": model, "day": time.strftime("%Y-%m-%d", time.gmtime()), "requests": 1, "prompt_tokens": prompt_tokens,
               "completion_tokens": completion_tokens}
        dialect: Any = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        insert = dialect.insert(_USAGE).values(row)
        more = {name: _USAGE.c[name] + row[name] for name in ("requests", "prompt_tokens", "completion_tokens")}
        with self._engine.begin() as connection:
            connection.execute(insert.on_conflict_do_update(index_elements=["key_id", "model", "day"], set_=more))

    def usage(self) -> list[dict[str, Any]]:
        """Per key, model and day."""
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(sa.select(_USAGE).order_by(_USAGE.c.day, _USAGE.c.key_id)).mappings()]


def _sqlite(connection: Any, _record: Any) -> None:
    """A log beside the file: readers do not wait for the writer, and what is committed outlives the process."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA busy_timeout=5000")


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class Checked:
    """Keys as a server asks for them: known for FRESH_SECONDS, each with the requests and tokens of its last minute."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self._known: Mapping[str, Key] = {}
        self._read = -FRESH_SECONDS
        self._buckets: dict[tuple[str, str], Bucket] = {}

    def stale(self, seconds: float) -> bool:
        """Whether what is known is as old as this."""
        return time.monotonic() - self._read >= seconds

    def refresh(self) -> None:
        """Reads the database."""
        self._known, self._read = {key.id: key for key in self.keys.all()}, time.monotonic()

    def find(self, told: str) -> Key | None:
        """The key that was told, if it is one. Takes as long for a wrong id as for a wrong secret."""
        kind, _, rest = told.partition("-")
        key_id, _, secret = rest.partition("-")
        key = self._known.get(key_id) if kind == "pk" else None
        right = hmac.compare_digest(_hash(secret), key.sha256 if key is not None else "0" * 64)
        return key if right else None

    def wait_seconds(self, key: Key) -> float:
        """How long a key has to wait before it may ask again; 0 = not. A request that may is counted."""
        requests, tokens = (self._bucket(key, what, limit) for what, limit in (("requests", key.requests_per_minute), ("tokens", key.tokens_per_minute)))
        wait = max(requests.wait_seconds(1.0), tokens.wait_seconds(1.0))
        if not wait:
            requests.take(1.0)
        return wait

    def spent(self, key: Key, n_tokens: int) -> None:
        """Tokens that an answer took: what goes past the minute's is waited for by the next request."""
        self._bucket(key, "tokens", key.tokens_per_minute).take(n_tokens)

    def _bucket(self, key: Key, what: str, limit: int | None) -> Bucket:
        bucket = self._buckets.get((key.id, what))
        if bucket is None or bucket.limit != limit:
            bucket = self._buckets[key.id, what] = Bucket(limit)
        return bucket


class Bucket:
    """So much a minute, refilled as time goes; None = without limit."""

    def __init__(self, limit: int | None) -> None:
        self.limit, self._left, self._at = limit, float(limit or 0), time.monotonic()

    def wait_seconds(self, n: float) -> float:
        """Until n are there."""
        if self.limit is None:
            return 0.0
        now = time.monotonic()
        self._left = min(float(self.limit), self._left + (now - self._at) * self.limit / MINUTE)
        self._at = now
        missing = n - self._left
        return max(0.0, missing * MINUTE / self.limit)

    def take(self, n: float) -> None:
        if self.limit is not None:
            self.wait_seconds(0.0)
            self._left -= n
