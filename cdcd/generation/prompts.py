"""Lists of prompts, read from files, and the folders of pictures that are made of them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from cdcd.diffusion.sampler import SamplerConfig
from cdcd.features.text import shortened
from cdcd.generation.base import step_bar
from cdcd.generation.lists import (
    INDEX,
    ListError,
    ResultFolder,
    read_csv,
    read_text,
    refuse_lines,
    whole_number,
)
from cdcd.generation.pictures import MAX_NUM, Ask, Cut, PictureGenerator
from cdcd.pictures import save_png

COLUMNS = ("text", "class", "seed", "num", "name")
Kind = Literal["text", "class"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Wish:
    """One line of a file: what to draw, how often and from which seed.

    Attributes:
        condition: a text, or a class by number or name.
        num: pictures; None for the command's own.
        seed: of their draws; None likewise.
        name: of their files, without ending; None for one made of the line.
        line: where it stands, from 1 on; None for one that was not read from a file.
    """

    condition: str
    num: int | None = None
    seed: int | None = None
    name: str | None = None
    line: int | None = None


@dataclass(frozen=True)
class PromptFile:
    """What a file asks for.

    Attributes:
        kind: what its conditions are; None where only the model can tell.
        wishes: in the file's order.
        num_blank: lines that were skipped because nothing is on them.
    """

    kind: Kind | None
    wishes: list[Wish]
    num_blank: int


def read_prompts(path: str | Path) -> PromptFile:
    """Read prompts: one on each line, or a .csv with a header.

    A CSV has a column `text` or `class` and may have `seed`, `num` and `name`, any of which may
    stay empty. Every bad line is found before the file is refused.

    Raises:
        ListError: the file cannot be read, or lines of it break a rule.
    """
    path = Path(path)
    content = read_text(path, "prompts")
    if path.suffix.lower() == ".csv":
        found = _read_csv(path, content)
    else:
        lines = [line.removesuffix("\r") for line in content.split("\n")]
        if lines[-1] == "":  # behind the last line break
            lines.pop()
        wishes = [
            Wish(text, line=number) for number, text in enumerate(lines, 1) if text.strip(" \t")
        ]
        found = PromptFile(None, wishes, len(lines) - len(wishes))
    if not found.wishes:
        raise ListError(f"{path} must hold at least one prompt: got none; write one a line")
    return found


def _read_csv(path: Path, content: str) -> PromptFile:
    kinds: list[Kind] = []
    wishes, num_blank = read_csv(
        path,
        content,
        lambda header: kinds.append(_check_header(path, header)),
        lambda cells, line: _wish(cells, kinds[0], line),
    )
    return PromptFile(kinds[0], wishes, num_blank)


def _check_header(path: Path, header: list[str]) -> Kind:
    unknown = [name for name in header if name not in COLUMNS]
    kinds: list[Kind] = [kind for kind in ("text", "class") if kind in header]  # type: ignore[misc]
    if unknown or len(kinds) != 1 or len(set(header)) != len(header):
        raise ListError(
            f"{path}, line 1: columns must be text or class, and any of seed, num and name: got "
            f"{shortened(','.join(header))}; mend the header"
        )
    return kinds[0]


def _wish(cells: dict[str, str], kind: Kind, line: int) -> Wish:
    condition = cells[kind]
    if not condition.strip():
        raise ValueError(f"{kind} must not be empty: got {shortened(condition)}; fill it in")
    name = cells.get("name", "").strip().removesuffix(".png") or None
    if name is not None and not _NAME.fullmatch(name):
        raise ValueError(
            f"name must be letters, digits, '.', '_' and '-', up to 100: got {shortened(name)}; "
            "rename it"
        )
    return Wish(
        condition,
        whole_number("num", cells.get("num", ""), 1, MAX_NUM),
        whole_number("seed", cells.get("seed", ""), 0, 2**63 - 1),
        name,
        line,
    )


@dataclass(frozen=True)
class Planned:
    """A wish that was checked: what to draw into which files."""

    condition: str | int
    num: int
    seed: int
    files: list[str]
    line: int | None = None
    cut: Cut | None = None


def plan(
    generator: PictureGenerator,
    wishes: Sequence[Wish],
    num: int,
    seed: int,
    source: str | Path | None = None,
) -> list[Planned]:
    """Check all wishes before anything is generated, and name their files.

    Args:
        generator: knows which texts and classes can be used.
        wishes: of a file, or a single one.
        num: pictures of those that do not say.
        seed: of those that do not say.
        source: the file's path.

    Raises:
        ListError: lines of a file break a rule; the first is told with its number.
        ValueError: a single wish does.
    """
    planned: list[Planned] = []
    problems: list[tuple[int, str]] = []
    taken: dict[str, int | None] = {}
    for wish in wishes:
        try:
            made = _planned(
                generator, wish, wish.num or num, seed if wish.seed is None else wish.seed
            )
            for name in made.files:
                if name.casefold() in taken:
                    raise ValueError(
                        f"name must be of one line alone: {name} is also that of line "
                        f"{taken[name.casefold()]}; rename one"
                    )
            taken.update((name.casefold(), wish.line) for name in made.files)
            planned.append(made)
        except ValueError as error:
            if source is None or wish.line is None:
                raise
            problems.append((wish.line, str(error)))
    refuse_lines(source or "", problems)
    return planned


def _planned(generator: PictureGenerator, wish: Wish, num: int, seed: int) -> Planned:
    condition: str | int
    cut = None
    if generator.reads_text:
        prompt = generator.check_text(wish.condition)
        condition, cut = prompt.text, prompt.cut
        slug = _slug(prompt.text)
    else:
        condition = generator.find_class(wish.condition)
        names = generator.class_names
        slug = f"class-{condition}" + (f"-{_slug(names[condition])}" if names else "")
    stem = wish.name or (slug if wish.line is None else f"{wish.line:05d}-{slug}")
    digits = len(str(num - 1))
    files = [f"{stem}.png"] if num == 1 else [f"{stem}-{k:0{digits}d}.png" for k in range(num)]
    return Planned(condition, num, seed, files, wish.line, cut)


def _slug(text: str) -> str:
    """A few words of a text as a file's name; other letters than ASCII's are left out."""
    plain = unicodedata.normalize("NFKD", text[:200]).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")[:40].strip("-") or "prompt"


@dataclass
class PictureFolder(ResultFolder):
    """Pictures with an index of them; written picture by picture, index and all."""

    KEY: ClassVar[str] = "pictures"

    def begin(self, names: Iterable[str]) -> None:
        """Make the folder this program's own, with an index, before anything is drawn.

        Raises:
            ValueError: it has no index, and files of other origin where pictures shall be.
        """
        if (self.path / INDEX).exists():
            return
        for name in names:
            if (self.path / name).exists():
                raise ValueError(
                    f"--out must not hold other files by the names of its pictures: {name} is in "
                    f"{self.path}, which has no {INDEX}; move it away, or choose another folder"
                )
        self.flush()

    def holds(self, entry: dict[str, Any]) -> bool:
        """Whether this very picture, made in this very way, is there."""
        name = entry["file"]
        known = self.entries.get(name)
        return known == entry and (self.path / name).is_file()

    def add(self, entry: dict[str, Any], image: Any) -> None:
        """Write a picture, and every few seconds the index."""
        save_png(image, self.path / entry["file"])
        self.entries[entry["file"]] = entry
        self.flush_now_and_then()


@dataclass(frozen=True)
class Filled:
    """What a run did to a folder: pictures written, and pictures that were there already."""

    num_written: int
    num_kept: int


def fill_folder(
    generator: PictureGenerator,
    planned: Sequence[Planned],
    folder: PictureFolder,
    config: SamplerConfig,
    model_sha256: str,
    progress: bool = True,
) -> Filled:
    """Draw what a folder lacks; whatever stops it, finished pictures stay and are in the index.

    Prompts share batches; see `PictureGenerator` for why that changes no picture.

    Args:
        generator: draws.
        planned: what the folder shall hold.
        folder: keeps what it has beside that.
        config: sampler settings of all pictures.
        model_sha256: of the model's weights, because another model draws other pictures.
        progress: show a bar with the time left.
    """
    with folder.held():
        missing: list[tuple[Ask, dict[str, Any]]] = []
        num_kept = 0
        for wish in planned:
            for entry in _entries(generator, wish, config, model_sha256):
                if folder.holds(entry):
                    num_kept += 1
                else:
                    missing.append((Ask(wish.condition, wish.seed, entry["index"]), entry))
        folder.begin(entry["file"] for _, entry in missing)
        _draw(generator, missing, folder, config, progress)
    return Filled(len(missing), num_kept)


def _draw(
    generator: PictureGenerator,
    missing: Sequence[tuple[Ask, dict[str, Any]]],
    folder: PictureFolder,
    config: SamplerConfig,
    progress: bool,
) -> None:
    size = generator.batch_size
    total = generator.num_calls(len(missing), config)
    try:
        with step_bar(total, progress and total > 0) as advance:
            for start in range(0, len(missing), size):
                batch = missing[start : start + size]
                images = generator.draw_batch([ask for ask, _ in batch], config, advance)
                for (_, entry), image in zip(batch, images, strict=True):
                    folder.add(entry, image)
    finally:
        if missing:
            folder.flush()


def _entries(
    generator: PictureGenerator, wish: Planned, config: SamplerConfig, model_sha256: str
) -> list[dict[str, Any]]:
    """What the index says of each picture of a wish."""
    told: dict[str, Any]
    if isinstance(wish.condition, str):
        told = {"text": wish.condition}
        if wish.cut is not None:
            told["num_tokens_dropped"] = wish.cut.num_dropped
    else:
        names = generator.class_names
        told = {"class": wish.condition, "class_name": names[wish.condition] if names else None}
    told |= {
        "seed": wish.seed,
        "guidance": config.guidance,
        "truncation": config.truncation,
        "stride": config.stride,
        "model_sha256": model_sha256,
    }
    return [{**told, "file": name, "index": index} for index, name in enumerate(wish.files)]
