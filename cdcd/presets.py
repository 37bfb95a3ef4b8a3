"""Named parameter sets laid over params.yaml: behaviours (`fixed`) and scales (`aist/demo`).

A scale is named after its dataset's folder and laid first, a behaviour after it, in whatever order
they are given, so that a behaviour's own learning rate wins over the scale's.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from cdcd.config import ConfigError, Params, parse_params
from cdcd.data.files import atomic_path

FOLDER = Path("presets")


def _round_trip() -> YAML:
    reader = YAML()  # keeps comments, order and the spelling of numbers
    reader.preserve_quotes = True
    reader.width = 120
    reader.indent(mapping=2, sequence=4, offset=2)
    reader.representer.add_representer(
        type(None),
        lambda self, _: self.represent_scalar("tag:yaml.org,2002:null", "null"),
    )
    return reader


def list_presets(folder: Path = FOLDER) -> dict[str, str]:
    """All names, behaviours first, each with the first line of its comment.

    Raises:
        ConfigError: there is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; run from the repository's root")
    names = sorted(
        (path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")),
        key=lambda name: ("/" in name, name),
    )
    return {name: _comment(folder / f"{name}.yaml") for name in names}


def _comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    words: list[str] = []
    for line in lines:
        if not line.startswith("#"):
            break
        words.append(line.lstrip("# "))
    return " ".join(words)


def show(name: str, folder: Path = FOLDER) -> str:
    """The text of a preset.

    Raises:
        ConfigError: no preset has this name.
    """
    known = list_presets(folder)
    if name not in known:
        raise ConfigError(f"preset must be one of {', '.join(known)}: got {name}")
    return (folder / f"{name}.yaml").read_text(encoding="utf-8")


def _lay(tree: CommentedMap, overlay: CommentedMap, source: str, prefix: str = "") -> None:
    for key, value in overlay.items():
        dotted = f"{prefix}{key}"
        # Below `overrides.<dataset>.` stands only what the dataset sets; the result is checked.
        if key not in tree and prefix.startswith("overrides.") and prefix.count(".") > 2:
            tree[key] = value
            continue
        if key not in tree:
            raise ConfigError(
                f"{source}: {dotted} is not a key of the params file; remove it or mend its "
                "spelling"
            )
        if isinstance(value, CommentedMap) != isinstance(tree[key], CommentedMap):
            raise ConfigError(f"{source}: {dotted} must be a section in both files or in neither")
        if isinstance(value, CommentedMap):
            _lay(tree[key], value, source, f"{dotted}.")
        else:
            tree[key] = value


def merge(text: str, overlays: Sequence[tuple[str, str]], source: str = "params.yaml") -> str:
    """Lay overlays, `(name, text)`, over the text of a params file and check the result.

    Returns:
        The new text, with the comments, order and number spellings of the old one.

    Raises:
        ConfigError: an unknown key, a text that is no YAML, or a result that breaks a rule.
    """
    try:
        tree: Any = _round_trip().load(text)
        for name, overlay in overlays:
            loaded = _round_trip().load(overlay)
            if not isinstance(loaded, CommentedMap) or not isinstance(tree, CommentedMap):
                raise ConfigError(f"{name}: must be a mapping of sections")
            _lay(tree, loaded, name)
    except YAMLError as error:
        raise ConfigError(f"{source}: not YAML: {' '.join(str(error).split())}") from None
    stream = io.StringIO()
    _round_trip().dump(tree, stream)
    merged = stream.getvalue()
    # What the pipeline will read is checked, not the tree in memory.
    parse_params(yaml.safe_load(merged), source)
    return merged


def apply(
    names: Sequence[str], params_path: str | Path = "params.yaml", folder: Path = FOLDER
) -> Params:
    """Lay presets over a params file, checked before the file is replaced.

    Raises:
        ConfigError: an unknown preset or key, or a result that breaks a rule; nothing is written.
    """
    path = Path(params_path)
    ordered = sorted(names, key=lambda name: "/" not in name)
    overlays = [(f"presets/{name}.yaml", show(name, folder)) for name in ordered]
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; run from the repository's root") from None
    merged = merge(text, overlays, str(path))
    with atomic_path(path) as temporary:
        temporary.write_text(merged, encoding="utf-8")
    return parse_params(yaml.safe_load(merged), str(path))
