"""Whether the servers and stores that the settings name can be used: one line each, within seconds.

Nothing is created, sent or changed. Words in capitals are what needs a person. Logins are
never shown, of the webhook nothing but its host.
"""

from __future__ import annotations

import base64
import importlib.metadata
import importlib.util
import json
import os
import re
import socket
import sqlite3
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from cdcd.settings import SettingsError, prefect_login, shown, webhook_url
from cdcd.tracking.store import sqlite_path, tracking_uri

Result = TypeVar("Result")
SECONDS = 3.0
MAX_BYTES = 4 << 20


@dataclass(frozen=True)
class Answer:
    """What came back: a status and a body, or status 0 and why nothing did."""

    status: int
    body: bytes = b""
    reason: str = ""

    @property
    def value(self) -> Any:
        """The body's JSON, None where it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


def within(call: Callable[[], Result], late: Result, seconds: float | None = None) -> Result:
    """The result of a call, or `late` where it takes longer; its thread is left to itself.

    Time limits of sockets neither cover the look-up of names nor answers byte by byte.
    """
    results = [late]

    def work() -> None:
        results.append(call())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(SECONDS if seconds is None else seconds)
    return results[-1]


def ask(url: str, headers: Mapping[str, str] | None = None, body: Any = None) -> Answer:
    """GET an address, or POST JSON to it; never raises, never takes much over `SECONDS`."""
    data = None if body is None else json.dumps(body).encode()
    sent = {"User-Agent": "cdcd", **(headers or {})}
    if data is not None:
        sent["Content-Type"] = "application/json"

    def call() -> Answer:
        try:
            request = urllib.request.Request(url, data, sent)
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                return Answer(answer.status, answer.read(MAX_BYTES))
        except urllib.error.HTTPError as error:
            return Answer(error.code)
        except urllib.error.URLError as error:
            return Answer(0, reason=_why(error.reason))
        except Exception as error:  # a foreign server may send anything
            return Answer(0, reason=_why(error))

    return within(call, Answer(0, reason=_LATE))


_LATE = f"no answer within {SECONDS:.0f} seconds"


def _why(error: object) -> str:
    if isinstance(error, TimeoutError):
        return _LATE
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:80] or type(error).__name__


def cannot_write(folder: Path) -> str | None:
    """Why nothing can be written into a folder, or what would be made of it; None where it can.

    Only writing tells: permissions say yes to root, and some file systems no to everybody.
    """
    place = folder.absolute()
    try:
        around = next(at for at in (place, *place.parents) if at.exists())
        with tempfile.TemporaryDirectory(dir=around, prefix=".cdcd-"):
            return None
    except OSError as error:
        return error.strerror or type(error).__name__


# MLflow


def tracking(champions_of: Sequence[str] = ()) -> Iterator[str]:
    """Lines on MLflow's store and its registry.

    Args:
        champions_of: registered models that should have a champion.
    """
    uri = tracking_uri()
    path = sqlite_path(uri)
    scheme = uri.partition(":")[0] if ":" in uri else ""
    found: _Store
    if path is not None:
        found = _sqlite(path)
    elif scheme in {"http", "https"}:
        found = _server(uri)
    elif scheme in {"postgresql", "mysql", "mssql", "databricks", "file", ""} or "+" in scheme:
        found = _Store("not looked at; `cdcd sync` tells")
    else:
        found = _Store("IS NO STORE that MLflow knows; mend MLFLOW_TRACKING_URI or unset it")
    yield f"mlflow: {shown(uri)}: {found.text}"
    if found.models is not None:
        yield f"registry: {_champions(found.models, champions_of)}"


@dataclass(frozen=True)
class _Store:
    """What is to be said of a store, and the champion of each registered model if it can be read.

    A champion is a version, or None where the model has none.
    """

    text: str
    models: dict[str, str | None] | None = None


def _champions(models: dict[str, str | None], wanted: Sequence[str]) -> str:
    parts = [
        f"{name}@champion is version {version}" if version else f"{name} HAS NO CHAMPION"
        for name, version in sorted(models.items())
    ]
    parts += [f"{name} is not registered" for name in wanted if name not in models]
    return "; ".join(parts) or "holds no model"


def _server(uri: str) -> _Store:
    try:
        base, headers = _mlflow_login(uri)
    except ValueError as error:
        return _Store(f"IS NO ADDRESS ({error}); mend MLFLOW_TRACKING_URI or unset it")
    answer = ask(f"{base}/api/2.0/mlflow/registered-models/search?max_results=100", headers)
    meanwhile = "; runs are kept in data/spool meanwhile"
    match answer.status:
        case 0:
            return _Store(
                f"DOES NOT ANSWER ({answer.reason}); start its server, or mend or unset "
                f"MLFLOW_TRACKING_URI{meanwhile}"
            )
        case 401 | 403:
            return _Store(
                f"ASKS FOR A LOGIN ({answer.status}); set MLFLOW_TRACKING_USERNAME and "
                f"MLFLOW_TRACKING_PASSWORD{meanwhile}"
            )
        case status if status >= 500:
            return _Store(f"ANSWERS WITH AN ERROR ({status}); see its log{meanwhile}")
    if not isinstance(answer.value, dict) or answer.status != 200:
        return _Store(
            f"IS NO MLFLOW SERVER (status {answer.status}); mend MLFLOW_TRACKING_URI, such as "
            f"http://127.0.0.1:5000{meanwhile}"
        )
    version = ask(f"{base}/version", headers)
    is_told = version.status == 200 and re.fullmatch(rb"[0-9][0-9A-Za-z.]{0,20}", version.body)
    try:
        models = {
            str(model["name"]): next(
                (str(a["version"]) for a in model.get("aliases", ()) if a["alias"] == "champion"),
                None,
            )
            for model in answer.value.get("registered_models", ())
        }
    except (KeyError, TypeError, AttributeError):
        models = None
    return _Store(f"answers{_versions('mlflow', version.body.decode() if is_told else '')}", models)


def _mlflow_login(uri: str) -> tuple[str, dict[str, str]]:
    """The address without a login, and the headers that MLflow's client would send with it."""
    parts = urlsplit(uri)
    base = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")
    name = os.environ.get("MLFLOW_TRACKING_USERNAME") or unquote(parts.username or "")
    password = os.environ.get("MLFLOW_TRACKING_PASSWORD") or unquote(parts.password or "")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    if name or password:
        login = base64.b64encode(f"{name}:{password}".encode()).decode()
        return base, {"Authorization": f"Basic {login}"}
    return base, {"Authorization": f"Bearer {token}"} if token else {}


def _versions(package: str, theirs: str) -> str:
    """`, version 3.1`, and what is installed here where that differs in the first two numbers."""
    if not theirs:
        return ""
    try:
        mine = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return f", version {theirs}"
    is_near = mine.split(".")[:2] == theirs.split(".")[:2]
    return f", version {theirs}" + ("" if is_near else f" (here: {mine}, ANOTHER)")


def _sqlite(path: Path) -> _Store:
    if not path.exists():
        why = cannot_write(path.parent)
        if why is None:
            return _Store("created by the first run")
        return _Store(f"CANNOT BE CREATED ({why}); mend MLFLOW_TRACKING_URI or unset it")
    try:
        address = f"file:{quote(str(path.absolute()))}?mode=rw"
        database = sqlite3.connect(address, uri=True, timeout=1, isolation_level=None)
    except sqlite3.Error as error:
        return _Store(f"CANNOT BE OPENED ({error}); mend MLFLOW_TRACKING_URI or the file's rights")
    try:
        return _schema(database, path)
    except sqlite3.Error as error:
        return _Store(_sqlite_trouble(error))
    finally:
        database.close()


def _sqlite_trouble(error: sqlite3.Error) -> str:
    text = str(error)
    if "locked" in text:
        return (
            "is LOCKED by another process for over a second; runs are kept in data/spool while "
            "it is"
        )
    if "readonly" in text:
        return "is READ-ONLY; runs are kept in data/spool until it can be written"
    return f"CANNOT BE USED ({text}); move the file away, or bring back a copy"


def _schema(database: sqlite3.Connection, path: Path) -> _Store:
    # Taking the right to write tells whether another process holds it, and only a change whether
    # it can be written; it is taken back.
    database.execute("BEGIN IMMEDIATE")
    try:
        database.execute("CREATE TABLE cdcd_doctor (a)")
    finally:
        if database.in_transaction:  # a full disk has ended it already
            database.execute("ROLLBACK")
    size = f"{path.stat().st_size / 1e6:.1f} MB"
    tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master")}
    if "alembic_version" not in tables:
        if tables:
            return _Store("IS NO STORE OF MLFLOW; mend MLFLOW_TRACKING_URI or unset it")
        return _Store(f"{size}, empty; the first run fills it")
    at = next((str(row[0]) for row in database.execute("SELECT * FROM alembic_version")), "")
    known, latest = _migrations()
    if known and at not in known:
        return _Store(
            f"HAS A SCHEMA that this MLflow does not know ({at[:40]}): a newer one made it; "
            "install that, or name another store"
        )
    if known and at != latest:
        return _Store(
            f"HAS AN OLDER SCHEMA ({at}); copy the file, then `mlflow db upgrade sqlite:///{path}`"
        )
    if not {"registered_models", "registered_model_aliases", "model_versions"} <= tables:
        return _Store(f"{size}, can be written")
    models: dict[str, str | None] = {
        row[0]: None for row in database.execute("SELECT name FROM registered_models")
    }
    champions = database.execute(
        "SELECT name, version, storage_location FROM registered_model_aliases "
        "LEFT JOIN model_versions USING (name, version) WHERE alias = 'champion'"
    )
    models.update((name, f"{version}{_missing_files(place)}") for name, version, place in champions)
    return _Store(f"{size}, can be written", models)


def _missing_files(place: str | None) -> str:
    """What is to be said of a version whose files are not where the store says."""
    if not place or not place.startswith("file://") or Path(unquote(urlsplit(place).path)).exists():
        return ""
    return f", whose FILES ARE MISSING ({unquote(urlsplit(place).path)}); bring them back"


def _migrations() -> tuple[set[str], str]:
    """The schemas that the installed MLflow knows and its own, without importing it."""
    spec = importlib.util.find_spec("mlflow")
    if spec is None or not spec.submodule_search_locations:
        return set(), ""
    folder = Path(spec.submodule_search_locations[0]) / "store" / "db_migrations" / "versions"
    after: dict[str, str | None] = {}
    for file in folder.glob("*.py"):
        text = file.read_text(encoding="utf-8")
        made = re.search(r"^revision = ['\"](\w+)['\"]", text, re.MULTILINE)
        former = re.search(r"^down_revision = ['\"](\w+)['\"]", text, re.MULTILINE)
        if made:
            after[made[1]] = former[1] if former else None
    latest = set(after) - set(after.values())
    return (set(after), latest.pop()) if len(latest) == 1 else (set(), "")


# Prefect


def prefect() -> str:
    """A line on Prefect's API and the deployments it knows."""
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        return "prefect: PREFECT_API_URL is not set; stages run plainly, and nothing on a schedule"
    base, told = url.rstrip("/"), f"prefect: {shown(url)}"
    plainly = "; stages run plainly meanwhile"
    answer = ask(f"{base}/admin/version", prefect_login())
    match answer.status:
        case 0:
            return (
                f"{told}: DOES NOT ANSWER ({answer.reason}); start `prefect server start`, or mend "
                f"PREFECT_API_URL{plainly}"
            )
        case 401 | 403:
            return (
                f"{told}: ASKS FOR A LOGIN ({answer.status}); set PREFECT_API_AUTH_STRING{plainly}"
            )
        case status if status >= 500:
            return f"{told}: ANSWERS WITH AN ERROR ({status}); see its log{plainly}"
    if answer.status != 200 or not isinstance(answer.value, str):
        return (
            f"{told}: IS NO PREFECT API (status {answer.status}); its address ends in /api, such "
            f"as http://127.0.0.1:4200/api{plainly}"
        )
    return f"{told}: answers{_versions('prefect', answer.value[:20])}; {_deployments(base)}"


def _deployments(base: str) -> str:
    flows = ask(f"{base}/flows/filter", prefect_login(), {"limit": 200}).value
    found = ask(f"{base}/deployments/filter", prefect_login(), {"limit": 200}).value
    try:
        names = {flow["id"]: flow["name"] for flow in flows}
        listed = sorted(
            f"{names.get(one['flow_id'], '?')}/{one['name']}"
            + (" (paused)" if one.get("paused") else "")
            for one in found
        )
    except (KeyError, TypeError):
        return "ITS DEPLOYMENTS CANNOT BE READ; see its log"
    return f"deployments {', '.join(listed)}" if listed else "no deployments; run flows.serve"


# Webhook


def webhook() -> str:
    """A line on the webhook: whether its host takes connections; nothing is sent."""
    try:
        url = webhook_url()
    except SettingsError as error:
        return f"webhook: {error}"
    if url is None:
        return "webhook: CDCD_WEBHOOK_URL is not set; nobody is told when a scheduled run fails"
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    reason = cannot_connect(host, port)
    if reason is None:
        return f"webhook: {host}:{port} takes connections (nothing was sent)"
    return f"webhook: {host}:{port} CANNOT BE REACHED ({reason}); check CDCD_WEBHOOK_URL"


def cannot_connect(host: str, port: int) -> str | None:
    """Why a port takes no connections, None where it does."""

    def connect() -> str | None:
        try:
            with socket.create_connection((host, port), timeout=SECONDS):
                return None
        except (OSError, ValueError) as error:
            return _why(error)

    late: str | None = _LATE
    return within(connect, late)


# What is checked only where it is set


def others() -> Iterator[str]:
    """Lines on the settings of clusters, serving and weights that are set."""
    for name, check in (
        ("CDCD_MLFLOW_UI", _ui),
        ("CDCD_CLUSTER", _cluster),
        ("CDCD_SERVE_ROOT", _folder),
        ("CDCD_I3D_WEIGHTS", _file),
    ):
        told = os.environ.get(name)
        if told:
            yield f"{name}: {shown(told)}: {check(told)}"
    for name in LIMITS:
        told = os.environ.get(name)
        if told and not re.fullmatch(r"[0-9]*[1-9][0-9]*", told):
            yield f"{name}: {told[:40]} IS NO WHOLE NUMBER from 1 on; mend or unset it"


LIMITS = (
    "CDCD_TRAIN_PROCESSES",
    "CDCD_MAX_ROWS",
    "CDCD_MAX_PICTURES",
    "CDCD_MAX_SECONDS",
    "CDCD_MAX_UPLOAD_MB",
)


def _ui(told: str) -> str:
    answer = ask(told)
    if not answer.status:
        return f"DOES NOT ANSWER ({answer.reason}); links in Prefect lead nowhere"
    return "answers" if answer.status < 500 else f"ANSWERS WITH AN ERROR ({answer.status})"


def _cluster(told: str) -> str:
    if told == "local":
        return "a cluster of this machine, started by each stage"
    try:
        parts = urlsplit(told)
        host, port = parts.hostname, parts.port or 8786
    except ValueError:
        host = None
    if not host or parts.scheme not in {"tcp", "tls", "ws", "wss", "ucx"}:
        return "IS NEITHER local NOR A SCHEDULER such as tcp://127.0.0.1:8786; mend or unset it"
    reason = cannot_connect(host, port)
    if reason is None:
        return "takes connections"
    return f"CANNOT BE REACHED ({reason}); start `dask scheduler`, or unset it"


def _folder(told: str) -> str:
    if not Path(told).is_dir():
        return "IS NO FOLDER; make it, or unset it"
    why = cannot_write(Path(told))
    return "can be written" if why is None else f"CANNOT BE WRITTEN ({why})"


def _file(told: str) -> str:
    return "is there" if Path(told).is_file() else "IS MISSING; mend or unset it"
