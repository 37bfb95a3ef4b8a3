"""What differs between machines: addresses and credentials, from the environment or from `.env`.

The environment wins over `.env`. Nothing here decides a number of a model; those are in
params.yaml. `SETTINGS` lists all names, `.env.example` shows them, `cdcd doctor` checks them.
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

FILE = ".env"
"""Beside dvc.yaml; never committed."""


class SettingsError(ValueError):
    """A `.env` that cannot be read, or a setting that breaks its rule."""


@dataclass(frozen=True)
class Setting:
    """One variable of the environment.

    Attributes:
        meaning: what it is.
        default: what holds where it is unset.
        example: a value, without anything secret.
        is_secret: never shown, not even in part.
    """

    meaning: str
    default: str
    example: str
    is_secret: bool = False


SETTINGS = {
    "MLFLOW_TRACKING_URI": Setting(
        "MLflow's store or server", "sqlite in data/mlflow", "http://127.0.0.1:5000"
    ),
    "MLFLOW_TRACKING_USERNAME": Setting(
        "login of a server that asks for one", "no login", "somebody"
    ),
    "MLFLOW_TRACKING_PASSWORD": Setting(
        "password of that login", "no login", "a-password", is_secret=True
    ),
    "PREFECT_API_URL": Setting(
        "Prefect's server, for schedules and its UI",
        "stages run plainly",
        "http://127.0.0.1:4200/api",
    ),
    "PREFECT_API_AUTH_STRING": Setting(
        "login of a server that asks for one (PREFECT_SERVER_API_AUTH_STRING on its side)",
        "no login",
        "user:a-password",
        is_secret=True,
    ),
    "CDCD_WEBHOOK_URL": Setting(
        "receives a JSON message with stage, reason and log tail when a scheduled run fails",
        "no message",
        "https://example.org/hook",
        is_secret=True,
    ),
    "CDCD_I3D_WEIGHTS": Setting(
        "path of a pytorch-i3d state dict, for generating with a model trained on its features",
        "such a model is refused",
        "weights/rgb_imagenet.pt",
    ),
    "CDCD_MLFLOW_UI": Setting(
        "address of MLflow's UI as readers of links see it",
        "the tracking server, or where `make ui` listens",
        "https://mlflow.example.org",
    ),
    "CDCD_CLUSTER": Setting(
        "local, or a Dask scheduler, for the parts of a stage that can run apart",
        "as params.yaml says",
        "tcp://127.0.0.1:8786",
    ),
    "CDCD_TRAIN_PROCESSES": Setting("processes that train together on this machine", "1", "2"),
    "CDCD_SERVE_ROOT": Setting(
        "folder that requests to a served model may read and write in",
        "a server takes no paths",
        "served",
    ),
    "CDCD_MAX_ROWS": Setting("rows of one request to a served model", "64", "64"),
    "CDCD_MAX_PICTURES": Setting("pictures of one request", "64", "64"),
    "CDCD_MAX_SECONDS": Setting("seconds of video of one request", "600", "600"),
    "CDCD_MAX_UPLOAD_MB": Setting("megabytes of files in one request", "64", "64"),
    "AWS_ACCESS_KEY_ID": Setting(
        "login of a DVC remote on S3", "~/.aws/credentials", "AKIAIOSFODNN7EXAMPLE", is_secret=True
    ),
    "AWS_SECRET_ACCESS_KEY": Setting(
        "its secret", "~/.aws/credentials", "a-secret", is_secret=True
    ),
    "CDCD_TRACKING": Setting("off records nothing in MLflow", "on", "off"),
    "CDCD_DEBUG": Setting("1 shows the traceback of an error as well", "one line", "1"),
    "CDCD_KERNELS": Setting("auto, triton or reference", "auto", "reference"),
    "CDCD_CHECKS": Setting("1 checks values on a GPU too", "on the CPU alone", "1"),
    "CDCD_REAL_DATA": Setting(
        "folder of real videos, for the tests that want some", "they are skipped", "downloads"
    ),
}
"""Everything of this kind that the project reads. MLflow, Prefect, DVC and boto have more."""

INTERNAL = frozenset({"CDCD_PIPELINE_RUN"})
"""Set by the project for processes that it starts, never by a person."""


def load_env(folder: Path | None = None) -> list[str]:
    """Put the settings of `.env` into the environment where it does not have them.

    Args:
        folder: where `.env` lies; None for the repository's root, or the current folder outside.

    Returns:
        The names that came from the file.

    Raises:
        SettingsError: the file cannot be read, or a line is no NAME=value. No value is shown.
    """
    if folder is None:
        from cdcd.tracking import repository_root

        folder = repository_root()
    path = folder / FILE
    if not path.is_file():
        return []
    from dotenv.parser import parse_stream

    try:
        with path.open(encoding="utf-8-sig") as file:
            bindings = list(parse_stream(file))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{path} must be a readable text of NAME=value lines: {type(error).__name__}; mend it"
        ) from None
    new = {}
    for binding in bindings:
        if binding.error or (binding.key is not None and not _is_usable(binding.value)):
            # What precedes a line, comments and blank ones, counts as part of it.
            blank = len(binding.original.string) - len(binding.original.string.lstrip("\r\n"))
            line = binding.original.line + binding.original.string[:blank].count("\n")
            raise SettingsError(
                f"{path}:{line}: a line must be NAME=value or a comment: got "
                "something else (not shown, it may be a secret); mend it"
            )
        if binding.key is not None and binding.value and binding.key not in os.environ:
            new[binding.key] = binding.value
    os.environ.update(new)
    return sorted(new)


def _is_usable(value: str | None) -> bool:
    return value is not None and "\0" not in value


def shown(url: str) -> str:
    """An address without the login and the query that may stand in it."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "an address that cannot be read"
    if not parts.netloc:
        return url
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def prefect_login() -> dict[str, str]:
    """The headers that Prefect's client sends by `PREFECT_API_AUTH_STRING`; empty where unset."""
    login = os.environ.get("PREFECT_API_AUTH_STRING")
    if not login:
        return {}
    return {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}


def webhook_url() -> str | None:
    """`CDCD_WEBHOOK_URL`, or None where it is unset.

    Raises:
        SettingsError: it is no http or https address. The address is not shown: it may hold a
            secret.
    """
    url = os.environ.get("CDCD_WEBHOOK_URL")
    if not url:
        return None
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in {"http", "https"} and bool(parts.hostname)
        _ = parts.port  # a port that is no number shows here alone
    except ValueError:
        is_one = False
    if not is_one:
        raise SettingsError(
            "CDCD_WEBHOOK_URL must begin with http:// or https:// and name a host: got another "
            "address; mend or unset it"
        )
    return url
