"""Versions of registered models: logging, tags, aliases, fetching."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from cdcd.tracking.runs import open_run
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
        metadata: of the model, JSON-able.
    """
    with open_run("register", dataset, tags=tags, needs_store=True) as tracker:
        if tracker.run_id is None:
            raise TrackingError(
                "register needs the tracking store: got CDCD_TRACKING=off; unset it"
            )
        import mlflow

        mlflow.set_tracking_uri(tracking_uri())
        with mlflow.start_run(run_id=tracker.run_id):
            logged = mlflow.pyfunc.log_model(
                name=name,
                python_model=str(python_model),
                artifacts={key: str(path) for key, path in artifacts.items()},
                code_paths=[str(path) for path in code_paths],
                pip_requirements=requirements,
                signature=_signature(task),
                metadata=dict(metadata),
                registered_model_name=name,
            )
        client, version = open_client(), str(logged.registered_model_version)
        made = ModelVersion._of(client.get_model_version(name, version))
        set_version_tags(made, tags)
        client.update_model_version(name, version, description=description)
        return ModelVersion._of(client.get_model_version(name, version))


def _signature(task: str) -> Any:
    """What `cdcd.serving` reads and returns, for MLflow."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType, Array

    def optional(**kinds: DataType) -> list[ColSpec]:
        return [ColSpec(kind, label, required=False) for label, kind in kinds.items()]

    text, number, whole = DataType.string, DataType.double, DataType.long
    settings = optional(out=text, seed=whole, guidance=number, truncation=number)
    if task == "dance2music":
        given = [ColSpec(text, "video")]
        made = [
            ColSpec(text, "audio_path"),
            ColSpec(whole, "sample_rate_hz"),
            ColSpec(number, "duration_seconds"),
        ]
    else:
        # A class is a number or a name.
        asked = ColSpec(text, "text") if task == "text2image" else ColSpec(AnyType(), "class")
        given = [asked, *optional(num=whole)]
        made = [
            ColSpec(Array(text), "image_paths"),
            ColSpec(whole, "width"),
            ColSpec(whole, "height"),
            ColSpec(whole, "num_tokens_dropped"),
        ]
    return ModelSignature(inputs=Schema([*given, *settings]), outputs=Schema(made))


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


def set_version_tags(version: ModelVersion, tags: Mapping[str, str]) -> None:
    """Add or replace tags of a registered version."""
    client = open_client()
    for key, value in tags.items():
        client.set_model_version_tag(version.name, version.version, key, str(value))


def set_alias(name: str, alias: str, version: str) -> None:
    """Point an alias at a version; it leaves the one it pointed at."""
    open_client().set_registered_model_alias(name, alias, version)


def download_model(uri: str) -> dict[str, Path]:
    """Fetch a `models:/…` URI and return the folders of its artifacts by name.

    Raises:
        TrackingError: no such model, version or alias, or a model of another kind.
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
        return {name: folder / entry["path"] for name, entry in artifacts.items()}
    except (MlflowException, OSError, KeyError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TrackingError(
            f"--model must name a registered version or alias: got {uri} ({reason}); "
            "see `make ui` for those that exist"
        ) from error
