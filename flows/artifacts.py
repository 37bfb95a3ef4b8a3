"""What a run leaves in Prefect's UI: the table of stages, links to MLflow, a contact sheet."""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from PIL import Image

from cdcd.tracking import TrackingError
from cdcd.tracking.links import latest_run_link, version_link
from flows.pipeline import Done, table
from flows.stage import DATA, folder, one_line

SHEET_SIDE = 900
"""Longest side of a contact sheet in pixels: an artifact is a row of a database."""
SHEETS = ("real_reconstructed_generated.png", "samples.png")
"""Previews that make a contact sheet, the best first."""
logger = logging.getLogger(__name__)


def show_stages(done: list[Done], say: Callable[[str], object]) -> None:
    """Leave the table of what happened to each stage, here and in the log that `say` writes."""
    from prefect.artifacts import create_markdown_artifact

    text = table(done) if done else "Nothing to do: every stage is up to date."
    create_markdown_artifact(text, key="cdcd-stages", description="What happened to each stage")
    say(text)


def show_results(datasets: Iterable[str]) -> None:
    """Leave links to MLflow and a contact sheet for each dataset that has results.

    What is missing is left out: a run that did its work does not fail for its pictures.
    """
    from prefect.artifacts import create_link_artifact, create_markdown_artifact

    for dataset in datasets:
        try:
            for what, link in _links(dataset).items():
                create_link_artifact(
                    link, link_text=f"{what}, {dataset}", key=f"cdcd-{what}-{dataset}"
                )
        except TrackingError as error:
            logger.warning("no links to MLflow: %s", one_line(error))
        sheet = contact_sheet(dataset)
        if sheet is not None:
            create_markdown_artifact(
                sheet, key=f"cdcd-pictures-{dataset}", description=f"What {dataset} generated"
            )


def _links(dataset: str) -> dict[str, str]:
    found = {}
    run = latest_run_link(dataset, "evaluate")
    if run:
        found["evaluation"] = run
    try:
        model = json.loads((DATA / "registered" / f"{dataset}.json").read_text(encoding="utf-8"))
        found["model"] = version_link(model["name"], model["version"])
    except (OSError, ValueError, KeyError):
        pass
    return found


def contact_sheet(dataset: str) -> str | None:
    """The preview of a dataset's results as Markdown that holds the picture itself, or None."""
    previews = folder("generated", dataset) / "previews"
    # Of music these are spectrograms; a run without any still has its figure of scores.
    candidates = [
        *(previews / name for name in SHEETS),
        *sorted(previews.glob("*.png")),
        DATA / "metrics" / f"{dataset}.png",
    ]
    path = next((path for path in candidates if path.is_file()), None)
    return None if path is None else _embedded(path, dataset)


def _embedded(path: Path, label: str) -> str | None:
    buffer = io.BytesIO()
    try:
        with Image.open(path) as image:
            image.thumbnail((SHEET_SIDE, SHEET_SIDE))
            image.convert("RGB").save(buffer, "PNG", optimize=True)
    except OSError as error:
        logger.warning("no contact sheet of %s: %s", label, one_line(error))
        return None
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"![{label}](data:image/png;base64,{data})"
