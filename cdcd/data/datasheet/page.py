"""The web page of a data sheet: HTML with its style and pictures inside, and no script."""

from __future__ import annotations

import base64
import html
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cdcd.data.datasheet.counts import SMALL_SIDE, Spread, Tree
from cdcd.data.datasheet.leaks import LEAK, OK
from cdcd.data.datasheet.numbers import MAX_GROUPS, PLURALS
from cdcd.data.datasheet.samples import Shown
from cdcd.data.samples import SPLITS

_STYLE = """
:root{color-scheme:light dark;--ink:#1d2430;--soft:#5b6677;--line:#dde2ea;--back:#fbfcfe;
--card:#fff;--ok:#17703a;--okb:#e1f4e7;--bad:#a31621;--badb:#fde5e7;--na:#5b6677;--nab:#eceff4}
@media(prefers-color-scheme:dark){:root{--ink:#e4e8ef;--soft:#9aa5b5;--line:#333b48;--back:#13171d;
--card:#1b2028;--ok:#7fdc9f;--okb:#163524;--bad:#ff9aa2;--badb:#451a1f;--na:#a9b3c2;--nab:#2a313c}}
*{box-sizing:border-box}
body{font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:var(--ink);
background:var(--back);margin:0 auto;max-width:56rem;padding:1.25rem 1rem 4rem;
overflow-wrap:anywhere}
h1{font-size:1.7rem;line-height:1.2;margin:.4rem 0}
h2{font-size:1.2rem;margin:2.4rem 0 .6rem;padding-top:.6rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.3rem 0 .4rem}p{margin:.5rem 0}
small,.soft,figcaption{color:var(--soft)}small,figcaption{font-size:.82rem;line-height:1.35}
.scroll{overflow-x:auto}.scroll,.words{margin:.6rem 0}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{border-bottom:1px solid var(--line);padding:.32rem .8rem .32rem 0;text-align:left;
vertical-align:top;overflow-wrap:normal}
th{color:var(--soft);font-weight:600;vertical-align:bottom}.n{text-align:right;white-space:nowrap}
.tag{display:inline-block;border-radius:1em;padding:.05em .7em;font-size:.8rem;font-weight:600;
background:var(--nab);color:var(--na);white-space:nowrap}
.tag.ok{background:var(--okb);color:var(--ok)}.tag.leak{background:var(--badb);color:var(--bad)}
.note{border-left:3px solid var(--line);padding:.1rem 0 .1rem .8rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.25rem 1rem;margin:.6rem 0}
dt{color:var(--soft)}dd{margin:0}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(7.2rem,1fr));gap:.9rem;
margin:.8rem 0}
figure{margin:0}.grid img{width:100%;margin-bottom:.3rem}figure.wide{margin:1rem 0}
img{max-width:100%;height:auto;display:block;background:#fff;border-radius:6px}
code{font:.86em ui-monospace,SFMono-Regular,Menlo,monospace}
@media(max-width:32rem){dl{grid-template-columns:1fr}dd{margin-bottom:.4rem}
table{font-size:.78rem}th,td{padding-right:.5rem}th.n{white-space:normal}
.words th{display:none}.words td{display:block;border:0;padding:.1rem 0;overflow-wrap:anywhere}
.words td:first-child{font-weight:600;padding-top:.4rem}}
"""

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _number(value: float | None, digits: int = 1) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def _signed(value: int | None) -> str:
    return "–" if value is None else "0" if value == 0 else f"{value:+,}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.2f} MB"


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """Return a table of plain text; columns after the first `words` ones hold numbers.

    On a phone the cells of a table without numbers stand under each other.
    """

    def line(cells: Sequence[str], tag: str) -> str:
        mark = [f"<{tag}>" if i < words else f'<{tag} class="n">' for i in range(len(cells))]
        return "<tr>" + "".join(
            f"{start}{_text(cell)}</{tag}>" for start, cell in zip(mark, cells, strict=True)
        )

    body = "".join(line(row, "td") for row in rows)
    kind = "scroll" if words < len(heading) else "words"
    return f'<div class="{kind}"><table>{line(heading, "th")}{body}</table></div>'


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    inner = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in pairs)
    return f"<dl>{inner}</dl>"


def _counted(counts: Tree) -> str:
    return ", ".join(f"{name or '(none)'} {count:,}" for name, count in counts.items()) or "none"


def _image(data: bytes, kind: str, words: str) -> str:
    encoded = base64.b64encode(data).decode("ascii")
    return f'<img alt="{_text(words)}" src="data:image/{kind};base64,{encoded}">'


def render(tree: Tree, shown: Shown, folder: Path) -> str:
    """Return the page.

    Args:
        tree: the contents of `datasheet.json`.
        shown: the samples on the page.
        folder: where their pictures and the histograms are.
    """
    name = f"Data sheet: {tree['dataset']}"
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f"<title>{_text(name)}</title><style>{_STYLE}</style>",
        f"<h1>{_text(name)}</h1>",
        *_head(tree),
        *_split_section(tree),
        *_check_section(tree["checks"]),
        *_group_section(tree["groups"]),
        *_dance_section(tree),
        *_picture_section(tree),
        *_caption_section(tree["captions"]),
    ]
    for file in tree["figures"]:
        image = _image((folder / file).read_bytes(), "png", "histograms of the usable items")
        parts.append(f'<h2>Distributions</h2><figure class="wide">{image}</figure>')
    parts += _shown_section(tree, shown, folder)
    parts += _skipped_section(tree)
    return "\n".join(parts) + "\n</html>\n"


def _head(tree: Tree) -> Iterator[str]:
    kind = "embedded stand-in" if tree["embedded"] else "the user's download"
    yield f'<p><span class="tag">{kind}</span></p>'
    pairs = [("terms of use", tree["licence"]), ("read as", f"{tree['kind']}, by {tree['unit']}")]
    pairs += [(f"folder “{name}”", folder) for name, folder in tree["roots"].items()]
    decoders = [f"{name} {' and '.join(found)}" for name, found in tree["decoders"].items()]
    pairs.append(("decoders", ", ".join(decoders) or "not recorded"))
    if len(tree["item_licences"]) > 1:
        pairs.append(("terms of single items", _counted(tree["item_licences"])))
    yield _pairs(pairs)
    for note in tree["notes"]:
        yield f'<p class="note">{_text(note[:1].upper() + note[1:])}.</p>'


def _split_section(tree: Tree) -> Iterator[str]:
    rows = tree["splits"]
    yield f"<h2>Splits</h2><h3>Items ({_text(tree['unit'])}s) of the download</h3>"
    yield _table(
        ("split", "listed", "usable", "skipped", "official", "difference"),
        [
            (
                split,
                *(_number(row[name]) for name in ("listed", "usable", "skipped")),
                _number(row["official_items"]),
                _signed(row["difference_items"]),
            )
            for split, row in rows.items()
        ],
    )
    if tree["official_source"]:
        yield f"<small>Official counts: {_text(tree['official_source'])}.</small>"
    has_pairs = any(row["pairs"] is not None for row in rows.values())
    yield "<h3>Samples in shards</h3>"
    pairs = ("with captions",) if has_pairs else ()
    yield _table(
        ("split", "samples", *pairs, "official", "difference", "shards", "size"),
        [
            (
                split,
                _number(row["samples"]),
                *((_number(row["pairs"]),) if has_pairs else ()),
                _number(row["official_samples"]),
                _signed(row["difference_samples"]),
                _number(row["shards"]),
                _size(row["bytes"]),
            )
            for split, row in rows.items()
        ],
    )
    if has_pairs:
        yield "<small>“With captions” counts pairs of a picture and one caption, as the official "
        yield "counts do.</small>"


def _check_section(checks: Sequence[Tree]) -> Iterator[str]:
    yield "<h2>Do the splits leak?</h2>"
    for check in checks:
        style = {OK: "tag ok", LEAK: "tag leak"}.get(check["verdict"], "tag")
        yield f'<p><span class="{style}">{_text(check["verdict"])}</span> {_text(check["title"])} '
        yield f'<span class="soft">({_text(check["detail"])})</span></p>'
        if check["examples"]:
            rows = [(one["shared"], *one["items"]) for one in check["examples"]]
            yield _table(("shared", "one", "other"), rows, words=3)


def _group_section(groups: Sequence[Tree]) -> Iterator[str]:
    if not groups:
        return
    plural = PLURALS[groups[0]["kind"]]
    yield f"<h2>{plural.capitalize()}</h2>"
    used = [split for split in SPLITS if any(row[split] for row in groups)]
    heading = ("", *used, "all", "samples")

    def cells(row: Tree) -> tuple[str, ...]:
        number = "" if row["number"] is None else f"{row['number']} "
        counts = (*(row[split] for split in used), row["total"], row["samples"])
        return (f"{number}{row['name']}", *map(_number, counts))

    if len(groups) <= MAX_GROUPS:
        yield _table(heading, map(cells, groups))
        return
    spread = Spread(Counter(row["total"] for row in groups)).summary()
    assert spread is not None
    yield f"<p>{len(groups):,} {plural}; usable items in each: min {_number(spread['min'])}, "
    yield f"median {spread['median']:g}, max {_number(spread['max'])}.</p>"
    ordered = sorted(groups, key=lambda row: row["total"])
    for name, part in (("smallest", ordered[:5]), ("largest", ordered[:-6:-1])):
        yield f"<h3>The five {name}</h3>{_table(heading, map(cells, part))}"


def _spread_row(name: str, spread: Tree | None) -> tuple[str, ...]:
    if spread is None:
        return (name, "–", "–", "–", "–")
    columns = (spread[column] for column in ("min", "mean", "median", "max"))
    return (name, *(f"{value:,.2f}".rstrip("0").rstrip(".") for value in columns))


def _dance_section(tree: Tree) -> Iterator[str]:
    facts = tree["dance"]
    if facts is None:
        return
    seconds = facts["seconds"]
    whole = seconds["all"]
    total = whole["total"] / 60 if whole else 0.0
    yield f"<h2>Dance and music</h2><p>{total:,.1f} minutes in all.</p>"
    yield _table(
        ("seconds per item", "min", "mean", "median", "max", "minutes"),
        [
            (*_spread_row(split, spread), f"{spread['total'] / 60:,.1f}" if spread else "–")
            for split, spread in seconds.items()
        ],
    )
    if facts["tempi"]:
        yield "<h3>Tempo</h3>"
        rows = [
            (bpm, *(_number(counts[split]) for split in SPLITS), _number(sum(counts.values())))
            for bpm, counts in facts["tempi"].items()
        ]
        yield _table(("beats per minute", *SPLITS, "all"), rows)
    pads = [
        f"{name.partition('_')[0]} of {found['count']:,} samples, at most by {found['max']:,} "
        + ("of its values" if name.startswith("audio") else "of its frames")
        for name, found in facts["padded"].items()
    ]
    lengths = ", ".join(f"{length:g} s" for length in facts["segment_seconds"])
    yield _pairs(
        [
            ("songs", _counted(facts["songs"])),
            ("sound comes from", _counted(facts["audio_sources"])),
            ("video", _counted(facts["videos"])),
            ("segments", lengths or "none yet"),
            ("filled up at the end", "; ".join(pads) or "none"),
            ("segments not wholly dance", _number(facts["num_partial"])),
        ]
    )


def _picture_section(tree: Tree) -> Iterator[str]:
    facts = tree["pictures"]
    if facts is None:
        return
    yield "<h2>Pictures</h2>"
    rows = [_spread_row(name, facts[name]) for name in ("width", "height")]
    yield _table(("pixels", "min", "mean", "median", "max"), rows)
    small = f"{facts['num_small']:,} ({_percent(facts['share_small'])})"
    yield _pairs(
        [
            (f"a side below {SMALL_SIDE}", small),
            ("modes", _counted(facts["modes"])),
            ("formats", _counted(facts["formats"])),
        ]
    )


def _caption_section(facts: Tree) -> Iterator[str]:
    if facts["per_picture"] is None:
        return
    yield "<h2>Captions</h2>"
    rows = [
        _spread_row("captions per picture", facts["per_picture"]),
        _spread_row("words per caption", facts["words"]),
    ]
    yield _table(("", "min", "mean", "median", "max"), rows)


def _shown_section(tree: Tree, shown: Shown, folder: Path) -> Iterator[str]:
    split = tree["shown"]["split"]
    if shown.clips:
        yield f"<h2>Clips, spread over {split}</h2>"
    for (file, words), key in zip(shown.clips.items(), tree["shown"]["keys"], strict=False):
        image = _image((folder / file).read_bytes(), "png", f"clip {key}: {words}")
        yield f'<figure class="wide">{image}</figure>'
    for heading, tiles in (
        (f"Pictures, spread over {split}", shown.tiles),
        ("A picture and negatives of another class", shown.negatives),
    ):
        if tiles:
            yield f'<h2>{heading}</h2><div class="grid">'
            for tile in tiles:
                words = _text(tile.words)
                image = _image(tile.image, "jpeg", tile.words)
                yield f"<figure>{image}<figcaption>{words}</figcaption></figure>"
            yield "</div>"
    if shown.negatives:
        yield "<small>Drawn by the rule of training, among the pictures above.</small>"


def _skipped_section(tree: Tree) -> Iterator[str]:
    yield "<h2>Left out</h2>"
    for stage, what in (("ingest", "items listed"), ("shard", "samples planned")):
        rows = tree["skipped"][stage]
        yield f"<h3>by {stage}</h3>"
        if not rows:
            yield "<p>Nothing.</p>"
        for row in rows:
            chosen = ", as a setting asks" if row["is_chosen"] else ""
            yield f"<p><code>{_text(row['reason'])}</code> {row['count']:,} "
            yield f'<span class="soft">({_percent(row["share"])} of the {what}{chosen})</span></p>'
            examples = [(one["key"], one["split"], one["detail"]) for one in row["examples"]]
            yield _table(("key", "split", "detail"), examples, words=3)
