"""What a run was made from: the commit, the hashes of its stage's dependencies, the data it read.

Data is told by the hashes that dvc.lock holds for the outputs of earlier stages (its own entry for
a stage is written only after the stage), code by Git. Nothing here imports MLflow or DVC, and what
cannot be found out is left out: a run without these tags is better than none.
"""

from __future__ import annotations

import json
import logging
import os
import re
import struct
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cdcd.tracking.base import DataInput
from cdcd.tracking.store import workspace_root

logger = logging.getLogger(__name__)

CONTEXTS = {
    "codec": "training",
    "train": "training",
    "evaluate": "evaluation",
    "rescore": "evaluation",
}
"""What data is read for, where it is not the stage's own name."""
DATA_KINDS = ("raw", "shards", "tokens", "features", "generated")
"""Folders of data/ that hold data; the others hold what was made from them."""
_MAX_HEADER_BYTES = 10_000_000
_MAX_PROFILED = 8  # files whose headers are read


@dataclass(frozen=True)
class Identity:
    """Tags and inputs of a run."""

    tags: dict[str, str] = field(default_factory=dict)
    inputs: list[DataInput] = field(default_factory=list)


def identify(stage: str, dataset: str, paths: Iterable[str] | None = None) -> Identity:
    """What identifies a run of a stage.

    Tags: `git.commit`, `git.dirty`, and for each dependency `dep.<path>` with the hash of dvc.lock
    for data, with that of Git for code (`+dirty` where it was changed since the commit); in an
    experiment of DVC also its name as `experiment` and the revision it starts from as `sweep`.

    Args:
        stage: as in dvc.yaml.
        dataset: of the matrix.
        paths: dependencies relative to the repository's root; None for those in dvc.yaml.
    """
    root = workspace_root()  # in an experiment a copy, with its own commit and dvc.lock
    tree = _tree(root)
    tags = ({} if tree is None else tree.tags) | sweep_tags()
    try:
        deps = _declared(root, stage, dataset) if paths is None else list(paths)
        data = [dep for dep in deps if dep.startswith("data/")]
        locked = _locked(root, dataset, set(data)) if data else {}
    except Exception as error:  # a lock in the middle of a merge, another version's format
        logger.debug("no hashes of %s@%s: %s", stage, dataset, error)
        return Identity(tags)
    tags |= {f"dep.{path}": str(entry["md5"]) for path, entry in sorted(locked.items())}
    if tree is not None:
        tags |= _code_tags(root, [dep for dep in deps if dep not in data], tree.changed)
    context = CONTEXTS.get(stage, stage)
    return Identity(tags, [_input(root, p, e, context) for p, e in locked.items() if _is_data(p)])


def git_state() -> dict[str, str]:
    """Tags `git.commit` and `git.dirty` of the working tree, or nothing outside a repository."""
    tree = _tree(workspace_root())
    return {} if tree is None else tree.tags


def sweep_tags() -> dict[str, str]:
    """Tags `experiment` and `sweep` where DVC runs this as an experiment, else nothing."""
    name, revision = os.environ.get("DVC_EXP_NAME"), os.environ.get("DVC_EXP_BASELINE_REV", "")
    if not re.fullmatch("[0-9a-f]{7,64}", revision):
        return {}
    return {"sweep": revision} | ({"experiment": name} if name else {})


def data_hash(path: str, dataset: str) -> str | None:
    """The hash that dvc.lock holds for an output, or None.

    Args:
        path: such as data/models/aist.
        dataset: whose stages made it.
    """
    try:
        return str(_locked(workspace_root(), dataset, {path})[path]["md5"])
    except Exception:
        return None


def _git(root: Path, *command: str) -> str | None:
    try:
        return subprocess.run(
            ["git", *command], cwd=root, capture_output=True, text=True, check=True, timeout=20
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None


@dataclass(frozen=True)
class _Tree:
    """The commit that is checked out, and the paths that differ from it."""

    commit: str
    changed: set[str]

    @property
    def tags(self) -> dict[str, str]:
        return {
            "git.commit": self.commit,
            "git.dirty": str(bool(self.changed)).lower(),
            "mlflow.source.git.commit": self.commit,
        }


def _tree(root: Path) -> _Tree | None:
    """What Git says of the working tree; None outside a repository and before the first commit."""
    ask = ("status", "--porcelain=v2", "--branch", "-z", "--untracked-files=no", "--no-renames")
    commit, changed = None, set()
    for line in (_git(root, *ask) or "").split("\0"):
        if line.startswith("# branch.oid "):
            commit = line.split()[-1]
        elif line.startswith(("1 ", "u ")):  # with 8 and 10 fields before the path
            changed.add(line.split(" ", 8 if line[0] == "1" else 10)[-1])
    return None if commit is None or commit == "(initial)" else _Tree(commit, changed)


def _code_tags(root: Path, paths: list[str], changed: set[str]) -> dict[str, str]:
    said = _git(root, "ls-tree", "--full-name", "-z", "HEAD", "--", *paths) if paths else None
    tags = {}
    for line in (said or "").split("\0"):
        about, _, path = line.partition("\t")
        if not path:
            continue
        is_dirty = any(one == path or one.startswith(f"{path}/") for one in changed)
        tags[f"dep.{path}"] = about.split()[2] + ("+dirty" if is_dirty else "")
    return tags


def _load_yaml(text: str) -> Any:
    import yaml

    # libyaml is several times as fast; a stage starts more often than one thinks.
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _declared(root: Path, stage: str, dataset: str) -> list[str]:
    tree = _load_yaml((root / "dvc.yaml").read_text(encoding="utf-8"))
    deps = tree["stages"].get(stage, {}).get("deps", [])
    names = [next(iter(dep)) if isinstance(dep, Mapping) else str(dep) for dep in deps]
    return [name.replace("${item.dataset}", dataset) for name in names]


def _locked(root: Path, dataset: str, paths: set[str]) -> dict[str, dict[str, Any]]:
    """What dvc.lock says of those paths that a dataset's stages put out, by path."""
    lock = root / "dvc.lock"
    if not lock.is_file():
        return {}
    found = {}
    # Only this dataset's entries are parsed: all of them take a tenth of a second.
    for block in re.split(r"(?m)^  (?=\S)", lock.read_text(encoding="utf-8"))[1:]:
        name, _, _ = block.partition(":")
        if not name.endswith(f"@{dataset}"):
            continue
        for out in _load_yaml(block)[name].get("outs", []):
            if out["path"] in paths and _is_current(root / out["path"], lock):
                found[out["path"]] = out
    return found


def _is_current(path: Path, lock: Path) -> bool:
    """Whether the lock can speak of what lies there.

    Within `dvc repro` it does. A stage that was run by hand leaves outputs that are younger.
    """
    if "DVC_STAGE" in os.environ:
        return True
    return path.exists() and path.stat().st_mtime <= lock.stat().st_mtime


def _is_data(path: str) -> bool:
    return path.split("/")[1] in DATA_KINDS


def _input(root: Path, path: str, entry: Mapping[str, Any], context: str) -> DataInput:
    kind, dataset = path.split("/")[1:3]
    profile = {"bytes": entry.get("size"), "files": entry.get("nfiles")}
    profile = {name: value for name, value in profile.items() if value is not None}
    try:
        profile |= _counts(root / path)
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        logger.debug("no counts of %s: %s", path, error)
    return DataInput(f"{dataset}/{kind}", str(entry["md5"])[:36], path, profile, context)


def _counts(folder: Path) -> dict[str, Any]:
    """How many items a folder holds, from what is cheap to read.

    Returns:
        `items` by split or set from the summary of raw data and shards, or from the headers of
        cached splits, where `tokens` counts them over all.
    """
    summary = folder / "summary.json"
    if summary.is_file():
        told = json.loads(summary.read_text(encoding="utf-8"))
        for name in ("num_samples_by_split", "num_ok_by_split"):
            if name in told:
                return {"items": told[name], "num_rows": sum(told[name].values())}
    items, tokens = {}, 0
    for path in sorted(folder.glob("*.safetensors"))[:_MAX_PROFILED]:
        shapes = {name: at["shape"] for name, at in _header(path).items() if "shape" in at}
        found = shapes.get("tokens") or next(iter(shapes.values()))
        items[path.stem] = found[0]
        if "tokens" in shapes:
            tokens += _product(found)
    if not items:
        return {}
    counts: dict[str, Any] = {"items": items, "num_rows": sum(items.values())}
    return counts | ({"tokens": tokens} if tokens else {})


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > _MAX_HEADER_BYTES:
            raise ValueError(f"{path} has no header of a cached split")
        return dict(json.loads(file.read(length)))


def _product(shape: Iterable[int]) -> int:
    product = 1
    for length in shape:
        product *= length
    return product
