"""The scores of pictures as a table, a figure, a page with samples, and grids."""

from __future__ import annotations

import base64
import html
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cdcd import pictures as drawing
from cdcd.data.files import write_json
from cdcd.data.images import png_bytes
from cdcd.evaluation import report
from cdcd.evaluation.pictures.sets import Condition, PictureSet, Pixels, first_seeds
from cdcd.evaluation.pictures.tables import GROUP
from cdcd.evaluation.pictures.viewer import STAND_IN_FEATURES
from cdcd.evaluation.report import Column, Layout
from cdcd.evaluation.tables import Scores

NUM_SHOWN = 10  # conditions with pictures on the page
NUM_IN_GRID = 36
NUM_IN_ROWS = 8
_SHOWN = ("real", "codec_reconstruction", "model", "unconditioned")

NOTES = (
    "Each cell: mean, ± standard deviation (ddof 1) over seeds, [95 % percentile bootstrap "
    "interval over conditions]. Intervals that resample whole classes, species or pictures are in "
    "the JSON as ci_cluster_low and ci_cluster_high.",
    "Row real: what the same classifier and the same CLIP say of the real pictures; a perfect "
    "model scores about this.",
    "Row shuffled: the model's own pictures against the words of another condition, of another "
    "class where there are classes, so class accuracy lies below chance there; row unconditioned: "
    "pictures made without seeing any.",
    "A Fréchet distance depends on the numbers of pictures, which are in the JSON as n_real and "
    "n_gen: compare only runs with the same. Real pictures against themselves have 0.",
)


@dataclass(frozen=True, eq=False)
class Samples:
    """Pictures to show.

    Attributes:
        conditions: which.
        pictures: uint8 `[s, s, 3]` by system and condition key.
        captions: what was asked for, by condition key.
    """

    conditions: Sequence[Condition]
    pictures: Mapping[str, Mapping[str, Pixels]]
    captions: Mapping[str, str]


def layout(systems: Mapping[str, Mapping[str, Any]], used: Mapping[str, Any]) -> Layout:
    """Return the table's columns: those of the scores that there are.

    Args:
        systems: rows.
        used: what looked at the pictures; a classifier's accuracy on real pictures stands beside
            every score that rests on it.
    """
    accuracy = (used["classifier"] or {}).get("held_out_accuracy", {})

    def right(*names: str) -> str:
        known = [accuracy[name] for name in names if name in accuracy]
        if not known:
            return ""
        return f" (classifier right on real: {100 * sum(known) / len(known):.1f})"

    attributes = [name for name in accuracy if name != "class"]
    parts = dict.fromkeys(part for r in systems.values() for part in r.get("attributes", {}))
    families = {name: [a for a in attributes if a.split(" ")[0] == name] for name in parts}
    columns = [
        Column(("attribute_accuracy",), f"attributes told, %{right(*attributes)}", 100, 1, True),
        Column(("all_attributes",), "all of them, %", 100, 1, True),
        *(
            Column(("attributes", name), f"{name}, %{right(*mine)}", 100, 1, True)
            for name, mine in families.items()
        ),
        Column(("class_accuracy",), f"class, %{right('class')}", 100, 1, True),
        Column(("top5_accuracy",), "class among top 5, %", 100, 1, True),
        Column(("clip_s",), "CLIP-S × 100", 100, 2, True),
        Column(("clip_cos100",), "CLIP cosine × 100", 1, 2, True),
        Column(("fid",), "FID", 1, 2, False),
        Column(("fid_stand_in",), f"Fréchet distance ({STAND_IN_FEATURES})", 1, 3, False),
        Column(("bits_per_token",), "bits per token", 1, 2, False),
    ]
    found = [c for c in columns if any(report.lookup(r, c.path) for r in systems.values())]
    wanted = ("attribute_accuracy", "class_accuracy", "clip_s", "fid", "fid_stand_in")
    plotted = tuple(name for name in wanted if any(c.path == (name,) for c in found))
    notes: tuple[str, ...] = NOTES
    if accuracy:
        listed = ", ".join(f"{name} {100 * value:.1f} %" for name, value in accuracy.items())
        notes = (
            *NOTES,
            "The classifier that reads attributes and classes was trained on real train pictures; "
            f"on real held-out ones it is right in: {listed}.",
        )
    if used["features"] is None:
        notes = (*notes, "No Fréchet distance could be computed; the warnings say why.")
    return Layout(
        columns=tuple(found),
        plotted=plotted or tuple(c.path[0] for c in found[:1]),
        notes=notes,
        unit="conditions",
        group=GROUP,
        groups="classes, species or pictures",
        coloured=("model",),
    )


def choose(conditions: Sequence[Condition], num: int = NUM_SHOWN) -> list[Condition]:
    """Choose conditions spread over all, of different groups as far as there are enough."""
    by_group: dict[str, list[Condition]] = {}
    for condition in conditions:
        by_group.setdefault(condition.group, []).append(condition)
    rounds = itertools.zip_longest(*by_group.values())
    one_each = (condition for some in rounds for condition in some if condition is not None)
    first = list(itertools.islice(one_each, max(num, len(by_group))))
    places = np.unique(np.linspace(0, len(first) - 1, min(num, len(first))).round().astype(int))
    return [first[place] for place in places]


def title_of(condition: Condition, names: Mapping[int, str]) -> str:
    """Say what a condition asks for."""
    if condition.caption is not None:
        return condition.caption
    label = condition.label
    return "nothing" if label is None else f"class {label}: {names.get(label, '')}".rstrip(": ")


def by_class(scores: Scores) -> dict[str, dict[str, float]]:
    """Return the class accuracy of every class and system, the mean over seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for system, by_seed in scores.items():
        for metrics in by_seed.values():
            if "class_accuracy" not in metrics:
                continue
            for name, value in metrics["class_accuracy"].extra["per_class"].items():
                found.setdefault(name, {}).setdefault(system, []).append(value["accuracy"])
    return {
        name: {system: sum(v) / len(v) for system, v in mine.items()}
        for name, mine in sorted(found.items(), key=lambda item: _number(item[0]))
    }


def _number(name: str) -> tuple[int, str]:
    head = name.split(" ")[0]
    return (int(head) if head.isdigit() else 0, name)


def _class_rows(scores: Scores) -> tuple[list[str], list[list[str]]]:
    found = by_class(scores)
    systems = [system for system in scores if any(system in mine for mine in found.values())]
    heading = ["class", *(system.replace("_", " ") for system in systems)]
    rows = [
        [name, *(f"{100 * mine[s]:.1f}" if s in mine else "–" for s in systems)]
        for name, mine in found.items()
    ]
    return heading, rows


def page(
    metrics: Mapping[str, Any], scores: Scores, plot: Path, samples: Samples, shape: Layout
) -> str:
    """Return a self-contained web page: scores, figure, samples with what was asked for."""
    escape = html.escape
    shown = [system for system in _SHOWN if samples.pictures.get(system)]
    parts = [
        report.opening(metrics, plot, shape),
        "<style>td img{image-rendering:pixelated;min-width:128px;max-width:256px}"
        "td.asked{white-space:normal;max-width:20em}</style>",
        "<h2>Samples</h2><table><tr><th>asked for</th>",
        *(f"<th>{escape(system.replace('_', ' '))}</th>" for system in shown),
        "</tr>",
    ]
    for condition in samples.conditions:
        caption = escape(samples.captions[condition.key])
        parts.append(f'<tr><td class="asked">{caption}</td>')
        for system in shown:
            picture = samples.pictures[system].get(condition.key)
            parts.append(f"<td>{'–' if picture is None else _image(picture, system)}</td>")
        parts.append("</tr>")
    parts.append("</table>")
    heading, rows = _class_rows(scores)
    if rows:
        parts += ["<h2>Accuracy by class, %</h2>", report.html_table(heading, rows)]
    return "".join(parts) + report.closing(metrics)


def _image(picture: Pixels, system: str) -> str:
    encoded = base64.b64encode(png_bytes(picture)).decode()
    return f'<img alt="{html.escape(system)}" src="data:image/png;base64,{encoded}">'


def markdown(metrics: Mapping[str, Any], scores: Scores, shape: Layout) -> str:
    """Return the whole report as Markdown."""
    text = report.markdown(metrics, shape)
    heading, rows = _class_rows(scores)
    if not rows:
        return text
    lines = ["", "## Accuracy by class, %", "", *report.markdown_table(heading, rows), ""]
    return text + "\n".join(lines)


def draw_grids(folder: Path, sets: Sequence[PictureSet], samples: Samples) -> None:
    """Write rows of real, reconstructed and generated pictures, and a grid of each system.

    Args:
        folder: gets `rows.png` and `<system>-seed<k>.png`.
        sets: generated sets; a grid shows the first seed.
        samples: what the rows show.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = {system: mine for system in _SHOWN if (mine := samples.pictures.get(system))}
    whole = [c for c in samples.conditions if all(c.key in mine for mine in shown.values())]
    whole = whole[:NUM_IN_ROWS]
    if whole:
        stacked = {
            system.replace("_", " "): np.stack([mine[c.key] for c in whole])
            for system, mine in shown.items()
        }
        captions = [samples.captions[c.key] for c in whole]
        drawing.rows(stacked, folder / "rows.png", captions=captions)
    for one in first_seeds(sets).values():
        count = min(NUM_IN_GRID, len(one.images))
        places = np.unique(np.linspace(0, len(one.images) - 1, count).round().astype(int))
        images = np.stack([np.asarray(one.images[place]) for place in places])
        drawing.grid(images, folder / f"{one.path.stem}.png")


def write(
    metrics: Mapping[str, Any],
    scores: Scores,
    bits: Mapping[str, Mapping[str, float]],
    sets: Sequence[PictureSet],
    samples: Samples,
    *,
    metrics_path: Path,
    plot_path: Path,
    report_dir: Path,
) -> None:
    """Write figure, page, table, grids, every picture's scores, and last the metrics file.

    Args:
        metrics: the tree of the metrics file.
        scores: by system and seed.
        bits: bits per token by system and key.
        sets: generated sets.
        samples: what the page shows.
        metrics_path: JSON.
        plot_path: PNG.
        report_dir: replaced as a whole: `index.html`, `table.md`, `scores.json`, `grids/`.
    """
    shape = layout(metrics["systems"], metrics["config"])
    title = (
        f"{metrics['dataset']}, split {metrics['split']}: mean and 95 % interval over conditions "
        "(dark) and over their classes or pictures (light)"
    )
    report.draw(metrics["systems"], plot_path, title, shape)
    report.write_folder(
        report_dir,
        scores,
        bits,
        page=page(metrics, scores, plot_path, samples, shape),
        table=markdown(metrics, scores, shape),
        add=lambda folder: draw_grids(folder / "grids", sets, samples),
    )
    write_json(metrics_path, metrics)
