"""The scores as a table, a figure with intervals, and one web page that plays the clips."""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdcd.data.files import atomic_directory, atomic_path, write_json
from cdcd.data.samples import SAMPLE_RATE_HZ
from cdcd.evaluation.facts import rounded
from cdcd.evaluation.result import Metric
from cdcd.evaluation.systems import GeneratedSet
from cdcd.evaluation.tables import Scores

NUM_HEARD = 6  # clips with players on the page
DRAWN = ("ground_truth", "codec_reconstruction", "model")
"""Systems whose spectrograms stand under each other."""
_ENDS = ("low", "high")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One column: where its summary lies in a system's row and how it is printed."""

    path: tuple[str, ...]
    title: str
    factor: float
    digits: int
    is_better_high: bool | None


@dataclass(frozen=True)
class Layout:
    """What a report of one kind of data shows.

    Attributes:
        columns: of the table; those that no system has are left out.
        plotted: names of the columns in the figure.
        notes: lines below the table.
        unit: what is scored, in the plural.
        group: what the clusters of the wider intervals are, as in `ci_song_low`.
        groups: the same for people, in the plural.
        coloured: systems whose bars stand out.
    """

    columns: tuple[Column, ...]
    plotted: tuple[str, ...]
    notes: tuple[str, ...]
    unit: str
    group: str
    groups: str
    coloured: tuple[str, ...]


COLUMNS = (
    Column(("onset_f1",), "onset F1 50 ms, %", 100, 1, True),
    Column(("beat_f1",), "beat F1 70 ms, %", 100, 1, True),
    Column(("genre_accuracy",), "genre, %", 100, 1, True),
    Column(("tempo_error_bpm",), "tempo error, BPM", 1, 1, False),
    Column(("tempo_error_octave_bpm",), "… octave-aware", 1, 1, False),
    Column(("bits_per_token",), "bits per token", 1, 2, False),
    Column(("beats", "d2m", "coverage"), "beats coverage, %", 100, 1, None),
    Column(("beats", "d2m", "hit"), "beats hit, %", 100, 1, True),
    Column(("beats", "loris", "bcs"), "LORIS BCS, %", 100, 1, True),
    Column(("beats", "loris", "bhs"), "LORIS BHS, %", 100, 1, True),
    Column(("fad",), "FAD", 1, 2, False),
)

NOTES = (
    "Each cell: mean, ± standard deviation (ddof 1) over seeds, [95 % percentile bootstrap "
    "interval over clips]. Intervals that resample whole songs, wider where a song has many clips, "
    "are in the JSON as ci_song_low and ci_song_high.",
    "Coverage may exceed 100 %. The 1-second beat scores prove little: white noise and other "
    "people's music score high; read the F-measures, which allow 50 and 70 ms.",
    "With few clips, a few points of beats hit are noise; read the paired intervals.",
    "Ground truth against itself has onset and beat F1 of 100 %; its tempo error is that of "
    "the tempo estimate.",
)

MUSIC = Layout(
    columns=COLUMNS,
    plotted=("onset_f1", "beat_f1", "genre_accuracy", "tempo_error_bpm"),
    notes=NOTES,
    unit="clips",
    group="song",
    groups="songs",
    coloured=("model", "video_only", "motion_only"),
)


def lookup(row: Row, path: Sequence[str]) -> Any:
    """Follow a path of keys; None where it ends early."""
    value: Any = row
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _cell(value: Any, column: Column) -> str:
    if value is None:
        return "–"
    if not isinstance(value, Mapping):
        return f"{value * column.factor:z.{column.digits}f}"

    def number(name: str) -> str:
        return f"{value[name] * column.factor:z.{column.digits}f}"

    spread = "" if value["std_seeds"] is None else f" ± {number('std_seeds')}"
    # A score of a whole set, such as a distance, has no interval over what is in it.
    interval = "" if value["ci_low"] is None else f" [{number('ci_low')}, {number('ci_high')}]"
    return f"{number('mean')}{spread}{interval}"


def table(systems: Mapping[str, Row], layout: Layout = MUSIC) -> tuple[list[str], list[list[str]]]:
    """Return the heading and one row of text per system: mean ± std over seeds [95 % interval]."""
    used = [
        column
        for column in layout.columns
        if any(lookup(row, column.path) is not None for row in systems.values())
    ]
    heading = ["system", *(column.title for column in used), layout.unit]
    rows = []
    for name, row in systems.items():
        cells = [_cell(lookup(row, column.path), column) for column in used]
        rows.append([name.replace("_", " "), *cells, str(row.get("n", "–"))])
    return heading, rows


def verdicts(metrics: Mapping[str, Any], layout: Layout = MUSIC) -> list[str]:
    """Return a line for every paired comparison: difference, interval, do intervals overlap."""
    titles = {column.path[0]: column for column in layout.columns if len(column.path) == 1}
    group = layout.group
    lines = []
    for pair, scores in metrics["comparisons"].items():
        for score, found in scores.items():
            column = titles[score]
            low, mean, high = (
                f"{found[end] * column.factor:+.{column.digits}f}"
                for end in ("ci_low", "difference", "ci_high")
            )
            overlap = "overlap" if found["intervals_overlap"] else "do not overlap"
            wider = ""
            ends = [found[f"ci_{group}_{end}"] for end in ("low", "high")]
            if None not in ends:
                is_wide = found[f"intervals_overlap_by_{group}"]
                first, last = (f"{end * column.factor:+.{column.digits}f}" for end in ends)
                wider = (
                    f"; over {layout.groups} [{first}, {last}], the systems' intervals "
                    f"{'overlap' if is_wide else 'do not overlap'}"
                )
            lines.append(
                f"{pair.replace('_', ' ')}, {column.title}: {mean} [{low}, {high}] paired over "
                f"{layout.unit}, the systems' intervals {overlap}{wider}"
            )
    return lines


def remarks(metrics: Mapping[str, Any], layout: Layout = MUSIC) -> list[str]:
    """Return the lines below the table: comparisons, notes, and why it is no published table."""
    lines = [*verdicts(metrics, layout), *layout.notes]
    if not metrics["comparable_to_paper"]:
        why = metrics["comparable_to_paper_why"]
        lines.append(f"Not to be set beside published numbers: {why}.")
    return lines


def markdown_table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    cells = [heading, ["---"] * len(heading), *rows]
    return ["| " + " | ".join(row) + " |" for row in cells]


def html_table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of escaped text in HTML."""
    lines = [("th", heading), *(("td", row) for row in rows)]
    return "<table>{}</table>".format(
        "".join(
            "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
            for tag, row in lines
        )
    )


def markdown(metrics: Mapping[str, Any], layout: Layout = MUSIC) -> str:
    """Return the whole report as Markdown."""
    heading, rows = table(metrics["systems"], layout)
    lines = [f"# Scores: {metrics['dataset']}, split {metrics['split']}", ""]
    lines += markdown_table(heading, rows)
    lines += ["", *(f"- {line}" for line in remarks(metrics, layout)), ""]
    if metrics["warnings"]:
        lines += ["## Warnings", "", *(f"- {line}" for line in metrics["warnings"]), ""]
    return "\n".join(lines)


def draw(systems: Mapping[str, Row], path: Path, title: str, layout: Layout = MUSIC) -> None:
    """Draw the main scores as PNG: dark bars over what is scored, light ones over its groups."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = [column for column in layout.columns if column.path[0] in layout.plotted]
    figure = Figure(figsize=(11, 0.36 * len(systems) + 1.4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    names = list(systems)
    for axis, column in zip(panels, columns, strict=True):
        for place, name in enumerate(names):
            found = lookup(systems[name], column.path)
            if found is None:
                continue
            ends = ("mean", "ci_low", "ci_high", *(f"ci_{layout.group}_{e}" for e in _ENDS))
            mean, low, high, wide_low, wide_high = (
                None if found[end] is None else found[end] * column.factor for end in ends
            )
            colour = "tab:blue" if name in layout.coloured else "0.45"
            if wide_low is not None:
                axis.plot([wide_low, wide_high], [place, place], color=colour, alpha=0.25, lw=6)
            if low is not None:
                axis.plot([low, high], [place, place], color=colour, lw=2)
            axis.plot([mean], [place], "o", color=colour, ms=5)
        hint = {True: "higher is better", False: "lower is better", None: ""}
        name = textwrap.fill(column.title, 40)
        axis.set_xlabel(f"{name}\n{hint[column.is_better_high]}", fontsize=8)
        axis.set_xlim(left=0, right=105 if "%" in column.title else None)
        axis.tick_params(labelsize=8)
        axis.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None})


def _player(audio: NDArray[np.floating]) -> str:
    import soundfile

    stream = io.BytesIO()
    soundfile.write(stream, np.clip(audio, -1, 1), SAMPLE_RATE_HZ, format="OGG", subtype="VORBIS")
    encoded = base64.b64encode(_without_serial(stream)).decode()
    return f'<audio controls preload="none" src="data:audio/ogg;base64,{encoded}"></audio>'


def _without_serial(stream: io.BytesIO) -> bytes:
    """The same Ogg without the random number that marks its pages: equal sound, equal bytes."""
    import av

    made = io.BytesIO()
    stream.seek(0)
    with (
        av.open(stream) as given,
        av.open(made, "w", format="ogg", options={"fflags": "+bitexact"}) as container,
    ):
        copy = container.add_stream_from_template(given.streams.audio[0])
        for packet in given.demux(given.streams.audio[0]):
            if packet.dts is not None:  # the last one is empty
                packet.stream = copy
                container.mux(packet)
    return made.getvalue()


STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:80em;padding:0 1em;color:#222}
table{border-collapse:collapse;font-size:13px;display:block;overflow-x:auto}
th,td{border-bottom:1px solid #ddd;padding:.35em .6em;text-align:left;white-space:nowrap}
audio{width:15em;height:2em}img{max-width:100%}
@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}td,th{border-color:#444}
img{background:#fff}}
"""


def opening(metrics: Mapping[str, Any], plot: Path, layout: Layout) -> str:
    """Return a page's beginning: heading, table, comparisons, notes and the embedded figure."""
    escape = html.escape
    heading, rows = table(metrics["systems"], layout)
    title = f"Scores: {metrics['dataset']}, split {metrics['split']}"
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>',
        f"<style>{STYLE}</style><h1>{escape(title)}</h1>{html_table(heading, rows)}<ul>",
        *(f"<li>{escape(line)}</li>" for line in remarks(metrics, layout)),
        "</ul>",
        '<img alt="scores with intervals" src="data:image/png;base64,',
        base64.b64encode(plot.read_bytes()).decode(),
        '">',
    ]
    return "".join(parts)


def closing(metrics: Mapping[str, Any]) -> str:
    """Return a page's end: the warnings."""
    if not metrics["warnings"]:
        return "</html>\n"
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in metrics["warnings"])
    return f"<h2>Warnings</h2><ul>{lines}</ul></html>\n"


def details(scores: Scores) -> dict[str, Any]:
    """Return every metric of every system and seed as plain values."""
    return {
        system: {
            f"seed{seed}": {name: metric.as_dict() for name, metric in by_name.items()}
            for seed, by_name in by_seed.items()
        }
        for system, by_seed in scores.items()
    }


def page(
    metrics: Mapping[str, Any],
    plot: Path,
    sounds: Mapping[str, Mapping[str, NDArray[np.floating]]],
    captions: Mapping[str, Mapping[str, str]],
) -> str:
    """Return a self-contained web page: scores, figure and a player per clip and system.

    Args:
        metrics: as written to the metrics file.
        plot: the figure's PNG, which is embedded.
        sounds: float `[n]` at 22,050 Hz by key and system.
        captions: the clip's own scores by key and system.
    """
    escape = html.escape
    parts = [opening(metrics, plot, MUSIC), "<h2>Listen</h2>"]
    for key, by_system in sounds.items():
        parts.append(f"<h3>{escape(key)}</h3><table>")
        for system, audio in by_system.items():
            caption = escape(captions.get(key, {}).get(system, ""))
            name = escape(system.replace("_", " "))
            parts.append(f"<tr><td>{name}</td><td>{_player(audio)}</td><td>{caption}</td></tr>")
        parts.append("</table>")
    return "".join(parts) + closing(metrics)


def write(
    metrics: Mapping[str, Any],
    scores: Scores,
    bits: Mapping[str, Mapping[str, float]],
    sets: Sequence[GeneratedSet],
    *,
    metrics_path: Path,
    plot_path: Path,
    report_dir: Path,
) -> None:
    """Write figure, page, table, every clip's scores, and last the metrics file.

    Args:
        metrics: the tree of the metrics file.
        scores: by system and seed.
        bits: bits per token by system and key.
        sets: the clips to play.
        metrics_path: JSON.
        plot_path: PNG.
        report_dir: replaced as a whole: `index.html`, `table.md`, `scores.json` and
            `spectrograms/` of the clips with players.
    """
    title = (
        f"{metrics['dataset']}, split {metrics['split']}: mean and 95 % interval "
        "over clips (dark) and over songs (light)"
    )
    draw(metrics["systems"], plot_path, title)
    first: dict[str, GeneratedSet] = {}
    for one in sorted(sets, key=lambda one: one.seed):
        first.setdefault(one.system, one)
    keys = sorted(first["ground_truth"].audio)
    places = {int(i) for i in np.linspace(0, len(keys) - 1, NUM_HEARD).round()}
    sounds: dict[str, dict[str, NDArray[np.floating]]] = {}
    captions: dict[str, dict[str, str]] = {}
    for place, system in itertools.product(sorted(places), metrics["systems"]):
        key, one = keys[place], first[system]
        if key in one.audio and system != "silence":
            sounds.setdefault(key, {})[system] = one.audio[key]
            captions.setdefault(key, {})[system] = _caption(scores[system][one.seed], key)
    write_folder(
        report_dir,
        scores,
        bits,
        page=page(metrics, plot_path, sounds, captions),
        table=markdown(metrics),
        add=lambda folder: _draw_spectrograms(folder / "spectrograms", sounds),
    )
    write_json(metrics_path, metrics)


def _draw_spectrograms(
    folder: Path, sounds: Mapping[str, Mapping[str, NDArray[np.floating]]]
) -> None:
    from cdcd.pictures import compare_spectrograms

    folder.mkdir()
    for key, by_system in sounds.items():
        drawn = {name.replace("_", " "): by_system[name] for name in DRAWN if name in by_system}
        compare_spectrograms(drawn, SAMPLE_RATE_HZ, folder / f"{key}.png", key)


def write_folder(
    report_dir: Path,
    scores: Scores,
    bits: Mapping[str, Mapping[str, float]],
    *,
    page: str,
    table: str,
    add: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Replace a report's folder as a whole.

    Args:
        report_dir: gets `scores.json`, `index.html` and `table.md`.
        scores: by system and seed.
        bits: bits per token by system and key.
        page: of `index.html`.
        table: of `table.md`.
        add: writes what else there is into the folder it is given.
    """
    text = json.dumps(
        rounded({"systems": details(scores), "bits_per_token": bits}),
        sort_keys=True,
        allow_nan=False,
    )
    with atomic_directory(report_dir) as folder:
        (folder / "index.html").write_text(page, encoding="utf-8")
        (folder / "table.md").write_text(table, encoding="utf-8")
        (folder / "scores.json").write_text(text + "\n", encoding="utf-8")
        add(folder)


def _caption(metrics: Mapping[str, Metric], key: str) -> str:
    parts = []
    for name, title in (("onset_f1", "onset F1"), ("beat_f1", "beat F1")):
        score = metrics[name].per_sample.get(key)
        parts.append(f"{title} {'–' if score is None else f'{100 * score:.0f} %'}")
    if "genre_accuracy" in metrics:
        found = metrics["genre_accuracy"].extra["predictions"].get(key)
        parts.append(f"sounds like {found}")
    return ", ".join(parts)
