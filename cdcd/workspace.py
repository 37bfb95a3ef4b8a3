"""What lies in the repository's folder besides code: DVC's remotes, disks, locks, waiting runs."""

from __future__ import annotations

import configparser
import fcntl
import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cdcd.reachable import cannot_write
from cdcd.settings import shown

GIGABYTE = 10**9
LOW = 2 * GIGABYTE
_PLUGINS = {
    "s3": "dvc_s3",
    "ssh": "dvc_ssh",
    "sftp": "dvc_ssh",
    "gs": "dvc_gs",
    "azure": "dvc_azure",
    "http": "dvc_http",
    "https": "dvc_http",
    "webdav": "dvc_webdav",
    "webdavs": "dvc_webdav",
    "hdfs": "dvc_hdfs",
    "gdrive": "dvc_gdrive",
    "oss": "dvc_oss",
}


def remotes(folder: Path) -> Iterator[str]:
    """A line for each DVC remote: where it is, what it needs. Clouds are not asked.

    Args:
        folder: the repository's root.
    """
    try:
        config = _dvc_config(folder / ".dvc")
    except (OSError, ValueError, configparser.Error) as error:
        why = " ".join(str(error).split())[:120]
        yield f"remote: .dvc/config CANNOT BE READ ({why}); mend it"
        return
    default = config.get("core", {}).get("remote")
    names = [name for name in config if name.startswith('remote "')]
    for section in names:
        name = section.removeprefix('remote "').rstrip('"')
        usual = ", the default" if name == default else ""
        yield f"remote {name}{usual}: {_remote(config[section], folder)}"
    if default and f'remote "{default}"' not in names:
        yield f"remote {default}: IS THE DEFAULT BUT NOT SET; `dvc remote add {default} URL`"
    if not names:
        yield "remote: none; `dvc remote add -d NAME FOLDER_OR_URL` lets dvc push and pull"


def _dvc_config(folder: Path) -> dict[str, dict[str, str]]:
    """Sections of `.dvc/config` with those of `config.local` laid over; paths are absolute."""
    merged: dict[str, dict[str, str]] = {}
    for name in ("config", "config.local"):
        parser = configparser.RawConfigParser(strict=False)
        path = folder / name
        if not path.is_file():
            continue
        parser.read_string(path.read_text(encoding="utf-8"), str(path))
        for section in parser.sections():
            key = section.strip("'")
            merged.setdefault(key, {}).update(
                (option, value.strip("'\"")) for option, value in parser.items(section)
            )
    return merged


def _remote(options: dict[str, str], folder: Path) -> str:
    url = options.get("url", "")
    scheme = urlsplit(url).scheme if "://" in url else ""
    if not url:
        return "HAS NO URL; `dvc remote modify NAME url URL`"
    if scheme in {"", "file", "local"}:
        return _local_remote(url.partition("://")[2] or url, folder)
    plugin = _PLUGINS.get(scheme)
    if plugin is None:
        return f"{shown(url)}: {scheme}:// IS NO KIND that DVC knows; mend the URL"
    told = shown(url)
    if importlib.util.find_spec(plugin) is None:
        return f"{told}: NEEDS A PLUGIN; pip install dvc-{plugin[4:]}"
    match plugin:
        case "dvc_s3":
            return f"{told} (not asked); {_s3_login(options)}"
        case "dvc_ssh":
            return f"{told} (not asked); {_ssh_login(options)}"
    return f"{told} (not asked)"


def _local_remote(url: str, folder: Path) -> str:
    # DVC takes relative paths from the folder of its configuration.
    place = (folder / ".dvc" / Path(url).expanduser()).resolve()
    why = cannot_write(place)
    if why is not None:
        return f"{place} CANNOT BE WRITTEN ({why}); mount it, or `dvc remote modify`"
    return f"{place}, can be written" if place.is_dir() else f"{place}, made by the first push"


def _s3_login(options: dict[str, str]) -> str:
    if os.environ.get("AWS_ACCESS_KEY_ID") and os.environ.get("AWS_SECRET_ACCESS_KEY"):
        return "login: AWS_ACCESS_KEY_ID"
    if "access_key_id" in options and "secret_access_key" in options:
        return "login: access_key_id of the remote"
    if "profile" in options or os.environ.get("AWS_PROFILE"):
        return "login: an AWS profile"
    known = Path(options.get("credentialpath", "~/.aws/credentials")).expanduser()
    if known.is_file():
        return f"login: {known}"
    return "NO LOGIN FOUND; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials"


def _ssh_login(options: dict[str, str]) -> str:
    if "keyfile" in options:
        key = Path(options["keyfile"]).expanduser()
        return f"login: {key}" if key.is_file() else f"ITS KEY {key} IS MISSING; check keyfile"
    if "password" in options:
        return "login: a password"
    if os.environ.get("SSH_AUTH_SOCK"):
        return "login: the ssh agent"
    keys = sorted(Path("~/.ssh").expanduser().glob("id_*"))
    if keys:
        return f"login: {keys[0]}"
    return "NO KEY FOUND in ~/.ssh and no agent; make one, or set keyfile"


def disks(folder: Path) -> str:
    """A line on the space for data/ and for DVC's cache."""
    place = _dvc_cache(folder)
    cache = next(at for at in (place, *place.parents) if at.exists())
    parts = [_space("", folder / "data" if (folder / "data").is_dir() else folder)]
    if cache.stat().st_dev != folder.stat().st_dev:
        parts.append(_space(f" for DVC's cache in {place}", cache))
    return f"disk: {', '.join(parts)} (the default run writes about 1 GB)"


def _space(what: str, folder: Path) -> str:
    free = shutil.disk_usage(folder).free
    return f"{free / GIGABYTE:.0f} GB free{what}" + (", LOW" if free < LOW else "")


def _dvc_cache(folder: Path) -> Path:
    try:
        named = _dvc_config(folder / ".dvc").get("cache", {}).get("dir")
    except (OSError, ValueError, configparser.Error):
        named = None
    return (folder / ".dvc" / Path(named or "cache").expanduser()).resolve()


def git_identity(folder: Path) -> Iterator[str]:
    """A line where Git does not know who commits, which experiments need."""
    if shutil.which("git") is None:
        return
    for key, variable in (("user.name", "GIT_AUTHOR_NAME"), ("user.email", "GIT_AUTHOR_EMAIL")):
        if os.environ.get(variable):
            continue
        asked = ["git", "-C", str(folder), "config", key]
        if subprocess.run(asked, capture_output=True, check=False).returncode:
            yield f"git: {key} IS NOT SET, and `dvc exp run` needs it; `git config {key} …`"


def waiting_runs() -> str:
    """A line on the runs that MLflow could not take."""
    from cdcd.tracking.runs import spool_root
    from cdcd.tracking.spool import spools

    num_waiting = num_at_work = num_broken = 0
    for spool in spools(spool_root()):
        try:
            if spool.is_at_work():
                num_at_work += 1
            else:
                num_waiting += 1
        except (ValueError, OSError):
            num_broken += 1
    parts = [
        f"{number} {what}"
        for number, what in (
            (num_waiting, "WAIT; `cdcd sync` sends them"),
            (num_at_work, "still at work"),
            (num_broken, "DAMAGED; look into data/spool"),
        )
        if number
    ]
    return f"spool: runs: {', '.join(parts)}" if parts else "spool: no run waits to be sent"


def locks(folder: Path) -> Iterator[str]:
    """Lines on the pipeline's lock and DVC's own; one line where all is free."""
    temporary = folder / ".dvc" / "tmp"
    found = [*_pipeline_lock(temporary), *_dvc_locks(temporary), *_former_params(temporary)]
    yield from found or ["locks: free; no pipeline and no DVC command is at work"]


def _is_held(path: Path) -> bool:
    """Whether another process holds a lock file by flock."""
    try:
        with path.open("rb") as file:
            # Shared and for a moment, so that others that only look do not disturb each other.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _pipeline_lock(temporary: Path) -> Iterator[str]:
    # A lock file that nobody holds means nothing: the system frees it with the process.
    if _is_held(temporary / "cdcd-pipeline.lock"):
        yield "locks: a pipeline is at work here; a second one answers `busy` (exit code 75)"
    if _is_held(temporary / "cdcd-serve.lock"):
        yield "locks: flows.serve is at work here"


def _former_params(temporary: Path) -> Iterator[str]:
    is_left = (temporary / "params-before.yaml").is_file()
    if is_left and not _is_held(temporary / "cdcd-pipeline.lock"):
        yield (
            "locks: params.yaml IS OF A RUN WITH CHANGES that was killed; the next pipeline brings "
            "back the former"
        )


def _dvc_locks(temporary: Path) -> Iterator[str]:
    if _is_held(temporary / "lock"):
        yield "locks: a DVC command is at work here"
    path = temporary / "rwlock"
    if not path.is_file():
        return
    try:
        entries = _rwlock_entries(json.loads(path.read_text(encoding="utf-8") or "null"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        yield (
            "locks: .dvc/tmp/rwlock IS DAMAGED, as after a kill while it was written, and every "
            "DVC command fails; remove it while none is at work"
        )
        return
    for pid, command in sorted(entries.items()):
        match _kind_of(pid):
            case "dvc":
                yield f"locks: DVC is at work: {command} (PID {pid})"
            case "other":
                yield (
                    f"locks: .dvc/tmp/rwlock HOLDS PATHS for PID {pid}, which is no DVC but has "
                    "the number of one that was killed; remove the file while no DVC is at work"
                )
            case "gone":
                yield f"locks: {command} (PID {pid}) was killed; DVC removes its lock by itself"


def _rwlock_entries(tree: Any) -> dict[int, str]:
    held = [info for infos in tree.get("read", {}).values() for info in infos]
    held += [info for info in tree.get("write", {}).values() if info]
    return {int(info["pid"]): str(info["cmd"])[:60] for info in held}


def _kind_of(pid: int) -> str:
    """What has this number now: dvc, other or gone."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "other" if _is_alive(pid) else "gone"
    return "dvc" if any(Path(os.fsdecode(word)).name == "dvc" for word in words) else "other"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
