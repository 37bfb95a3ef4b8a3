"""Versions of registered models: logging, tags, aliases, fetching."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from cdcd import MODEL_FORMAT
from cdcd.settings import shown
from cdcd.tracking.runs import brief, open_run
from cdcd.tracking.store import TrackingError, open_client, tracking_uri


@dataclass(frozen=True)
class ModelVersion:
    """One registered version: its name, number, tags and the run and URI it came from."""

    name: str
    version: str
    tags: dict[str, str]
    run_id: str | None = None

    @property
    def uri(self) -> str:
        """`models:/<name>/<version>`."""
        return f"models:/{self.name}/{self.version}"

    @classmethod
    def _of(cls, found: Any) -> Self:
        return cls(found.name, str(found.version), dict(found.tags), found.run_id)


@contextlib.contextmanager
def _in_one_line() -> Iterator[None]:
    """What MLflow or its database raises, as a line that names the store."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        raise TrackingError(
            f"the registry at {shown(tracking_uri())} did not take it ({brief(error)}); see "
            "`cdcd doctor`, then run again"
        ) from error


@_in_one_line()
def log_model_version(
    name: str,
    *,
    dataset: str,
    task: str,
    python_model: Path,
    artifacts: Mapping[str, Path],
    code_paths: list[Path],
    requirements: list[str],
    tags: Mapping[str, str],
    description: str,
    metadata: Mapping[str, Any],
    input_example: Mapping[str, Any] | None = None,
) -> ModelVersion:
    """Log a models-from-code pyfunc (a video, a text or a class in, files out) and register it.

    The model holds the code, the artifacts' files and the requirements: nothing is pickled, and a
    clean environment loads it with `MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false`.

    Args:
        name: of the registered model.
        dataset: its experiment holds the run.
        task: decides the columns that go in and come out.
        python_model: the file that calls `mlflow.models.set_model`.
        artifacts: folders copied into the model, by the names that `context.artifacts` uses.
        code_paths: packages copied into the model.
        requirements: pip requirements, pinned.
        tags: of the version.
        description: of the version, shown in the UI.
        metadata: of the model, JSON-able; `MODEL_FORMAT` is added.
        input_example: a row that the model can be asked, shown in the UI; it is not tried.

    Raises:
        TrackingError: the store cannot be opened, or did not take it.
    """
    with open_run("register", dataset, tags=tags, needs_store=True) as tracker:
        if tracker.run_id is None:
            raise TrackingError(
                "register needs the tracking store: got CDCD_TRACKING=off; unset it"
            )
        import mlflow
        import pandas as pd

        mlflow.set_tracking_uri(tracking_uri())
        with mlflow.start_run(run_id=tracker.run_id):
            logged = mlflow.models.Model.log(
                None,
                _Untried,
                name=name,
                flavor_name="pyfunc",
                validate_serving_input=False,
                python_model=str(python_model),
                artifacts={key: str(path) for key, path in artifacts.items()},
                code_paths=[str(path) for path in code_paths],
                pip_requirements=requirements,
                signature=_signature(task),
                input_example=None if input_example is None else pd.DataFrame([input_example]),
                metadata={**metadata, "format": MODEL_FORMAT, "cdcd": _installed()},
                registered_model_name=name,
            )
        client, version = open_client(), str(logged.registered_model_version)
        made = ModelVersion._of(client.get_model_version(name, version))
        set_version_tags(made, tags)
        client.update_model_version(name, version, description=description)
        return ModelVersion._of(client.get_model_version(name, version))


class _Untried:
    """MLflow's `pyfunc`, which forgets to pass on that the example shall not be tried.

    Trying would load the model and generate: minutes for a large one, and only a warning where it
    fails.
    """

    @staticmethod
    def save_model(*, validate_serving_input: bool, **options: Any) -> None:
        """Save as `mlflow.pyfunc` does."""
        import mlflow

        assert not validate_serving_input
        mlflow.pyfunc.save_model(**options)


def _installed() -> str:
    """This version of cdcd; `unknown` where it runs from a bare copy."""
    try:
        return importlib.metadata.version("cdcd")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _signature(task: str) -> Any:
    """What `cdcd.serving` reads and returns, for MLflow.

    No column is required and no number typed, though one column is needed: MLflow's own complaints
    repeat the whole input, and it refuses whole numbers for `guidance` and gaps in `seed`.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType, Array

    text, number, whole, anything = DataType.string, DataType.double, DataType.long, AnyType()
    if task == "dance2music":
        given = {"video": anything, "video_base64": anything, "format": anything}
        made: dict[str, Any] = {
            "audio_path": text,
            "audio_base64": text,
            "sample_rate_hz": whole,
            "duration_seconds": number,
        }
    else:
        # A class is a number or a name.
        given = {"text" if task == "text2image" else "class": anything, "num": anything}
        made = {
            "image_paths": Array(text),
            "images_base64": Array(text),
            "width": whole,
            "height": whole,
            "num_tokens_dropped": whole,
        }
    settings = ("out", "as_base64", "seed", "guidance", "truncation")
    given |= dict.fromkeys(settings, anything)
    return ModelSignature(
        inputs=Schema([ColSpec(kind, name, required=False) for name, kind in given.items()]),
        outputs=Schema([ColSpec(kind, name) for name, kind in made.items()]),
    )


def version_by_alias(name: str, alias: str) -> ModelVersion | None:
    """The version an alias points to, or None."""
    client = open_client()
    from mlflow.exceptions import MlflowException

    try:
        return ModelVersion._of(client.get_model_version_by_alias(name, alias))
    except MlflowException:
        return None


def version_by_number(name: str, version: str) -> ModelVersion | None:
    """The version with this number, or None."""
    client = open_client()
    from mlflow.exceptions import MlflowException

    try:
        return ModelVersion._of(client.get_model_version(name, version))
    except MlflowException:
        return None


@_in_one_line()
def set_version_tags(version: ModelVersion, tags: Mapping[str, str]) -> None:
    """Add or replace tags of a registered version."""
    client = open_client()
    for key, value in tags.items():
        client.set_model_version_tag(version.name, version.version, key, str(value))


@_in_one_line()
def set_alias(name: str, alias: str, version: str) -> None:
    """Point an alias at a version; it leaves the one it pointed at."""
    client = open_client()
    from mlflow.exceptions import MlflowException

    try:
        client.set_registered_model_alias(name, alias, version)
    except MlflowException as error:
        # MLflow looks for the alias and then inserts it; of two that found none, one fails. Now
        # there is one to change.
        if "IntegrityError" not in str(error):
            raise
        client.set_registered_model_alias(name, alias, version)


def run_settings(run_id: str | None) -> dict[str, str]:
    """The parameters that a run recorded, by dotted name; empty where the store has no such run."""
    if run_id is None:
        return {}
    client = open_client()
    from mlflow.exceptions import MlflowException

    try:
        return dict(client.get_run(run_id).data.params)
    except MlflowException:
        return {}


def download_model(uri: str) -> dict[str, Path]:
    """Fetch a `models:/…` URI and return the folders of its artifacts by name.

    Raises:
        TrackingError: no such model, version or alias, a model of another kind, or one that
            another version of cdcd logged in a format that this one does not read.
    """
    open_client()
    import mlflow
    import yaml
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(tracking_uri())
    try:
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
        described = yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8"))
        artifacts = described["flavors"]["python_function"]["artifacts"]
        found = {name: folder / entry["path"] for name, entry in artifacts.items()}
        about = described.get("metadata") or {}
    except (MlflowException, OSError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        if _is_registered(uri):
            raise TrackingError(
                f"--model must name a version whose files are there: {uri} is registered, but they "
                f"cannot be read ({reason}); bring back the artifacts of its store, or register "
                "again"
            ) from error
        raise TrackingError(
            f"--model must name a registered version or alias: got {uri} ({reason}); "
            "see `make ui` for those that exist"
        ) from error
    _check_format(uri, about)
    gone = sorted(str(place) for place in found.values() if not place.exists())
    if gone:
        raise TrackingError(
            f"--model must name a version whose files are there: {uri} has lost {', '.join(gone)}; "
            "bring back the artifacts of its store, or register again"
        )
    missing = {"model", "codec"} - set(found)
    if missing:
        raise TrackingError(
            f"--model must be a model that cdcd registered: {uri} has no artifact "
            f"{' and no '.join(sorted(missing))}; see `make ui` for others"
        )
    return found


def _is_registered(uri: str) -> bool:
    name, _, alias = uri.removeprefix("models:/").partition("@")
    if alias:
        return version_by_alias(name, alias) is not None
    name, _, number = name.partition("/")
    return bool(number) and version_by_number(name, number) is not None


def _check_format(uri: str, about: Mapping[str, Any]) -> None:
    """Refuse a model whose artifacts mean something else; the first ones told no format."""
    theirs = about.get("format", MODEL_FORMAT)
    if theirs != MODEL_FORMAT:
        raise TrackingError(
            f"--model must be of format {MODEL_FORMAT}, which this cdcd {_installed()} reads: "
            f"{uri} is of format {theirs}, logged by cdcd {about.get('cdcd', 'unknown')}; use that "
            f'version, register again, or call mlflow.pyfunc.load_model("{uri}"), which brings its '
            "own code"
        )
