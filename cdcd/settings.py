"""What differs between machines: addresses and credentials, from the environment or from `.env`.

The environment wins over `.env`. Nothing here decides a number of a model; those are in
params.yaml. `.env.example` lists the names.
"""

from __future__ import annotations

import os
from pathlib import Path

SETTINGS = {
    "MLFLOW_TRACKING_URI": "MLflow's store or server; unset: sqlite in data/mlflow",
    "PREFECT_API_URL": "Prefect's server, for schedules and the UI; unset: stages run plainly",
    "CDCD_WEBHOOK_URL": "receives a JSON message when a scheduled run fails; unset: none",
}
"""Name and meaning of each setting of ours; remotes and their credentials are DVC's and boto's."""


class SettingsError(ValueError):
    """A `.env` that cannot be read, or a setting that breaks its rule."""


def load_env(folder: Path | None = None) -> list[str]:
    """Put the settings of `.env` into the environment where it does not have them.

    Args:
        folder: where `.env` lies; None for the current one.

    Returns:
        The names that came from the file.

    Raises:
        SettingsError: the file cannot be read, or a line is no NAME=value. No value is shown.
    """
    path = (folder or Path.cwd()) / ".env"
    if not path.is_file():
        return []
    from dotenv.parser import parse_stream

    try:
        with path.open(encoding="utf-8") as file:
            bindings = list(parse_stream(file))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{path} must be a readable text of NAME=value lines: {type(error).__name__}; mend it"
        ) from None
    new = {}
    for binding in bindings:
        if binding.error or (binding.key is not None and binding.value is None):
            raise SettingsError(
                f"{path}:{binding.original.line}: a line must be NAME=value or a comment: got "
                "something else (not shown, it may be a secret); mend it"
            )
        if binding.key is not None and binding.value and binding.key not in os.environ:
            new[binding.key] = binding.value
    os.environ.update(new)
    return sorted(new)


def webhook_url() -> str | None:
    """`CDCD_WEBHOOK_URL`, or None where it is unset.

    Raises:
        SettingsError: it is no http or https address. The address is not shown: it may hold a
            secret.
    """
    url = os.environ.get("CDCD_WEBHOOK_URL")
    if not url:
        return None
    if not url.startswith(("http://", "https://")):
        raise SettingsError(
            "CDCD_WEBHOOK_URL must begin with http:// or https://: got another address; mend or "
            "unset it"
        )
    return url
