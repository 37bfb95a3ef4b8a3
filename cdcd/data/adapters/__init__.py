"""The five datasets: a download in its publisher's layout, found, checked and turned to samples."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cdcd.config import DATASETS
from cdcd.data.adapters.base import Expected, Finding, Options, Source

if TYPE_CHECKING:
    from cdcd.config import Params

EMBEDDED = "download"
"""Where the stand-in lies below data/raw/<dataset>."""
EMBEDDED_LICENCE = (
    "the embedded data are synthesised by this project and free of other people's rights "
    "(Apache-2.0, like the code); they only have the layout of the published dataset"
)
_SOURCES = {
    "Aist": "aist",
    "AistClips": "clips",
    "TiktokClips": "clips",
    "Tiktok": "tiktok",
    "Cub200": "cub200",
    "Coco": "coco",
    "Imagenet": "imagenet",
}


def _module(dataset: str) -> ModuleType:
    if dataset not in DATASETS:
        raise ValueError(
            f"datasets must name a known dataset: got {dataset!r}; use {', '.join(DATASETS)}"
        )
    return import_module(f"cdcd.data.adapters.{dataset}")


def check_download(dataset: str, root: Path) -> list[Finding]:
    """Say what of a dataset lies in a folder, and where to get what is missing.

    Raises:
        ValueError: no such folder or dataset.
    """
    module = _module(dataset)
    if not root.is_dir():
        raise ValueError(f"--check must name a folder: got {str(root)!r}; check the path")
    findings: list[Finding] = module.check(root)
    return findings


def open_dataset(params: Params, dataset: str, folder: Path) -> tuple[Source, bool]:
    """Find the download that the parameters name, or write the stand-in.

    Args:
        params: section `ingest`.
        dataset: one of the five.
        folder: of data/raw, where the stand-in is written.

    Returns:
        The source, and whether it is the stand-in.

    Raises:
        ValueError: unknown dataset, or a folder that is missing or in another layout.
    """
    module = _module(dataset)
    setting = getattr(params.ingest, dataset)
    if dataset == "aist":
        return _open_aist(params, module, folder)
    if setting.root is None:
        _write_embedded(params, dataset, folder / EMBEDDED)
        source: Source = module.open_source(setting, folder / EMBEDDED)
        return source, True
    root = Path(setting.root).expanduser().resolve()
    if not root.is_dir():
        raise ValueError(
            f"ingest.{dataset}.root must be an existing folder: got {setting.root!r}; mend the "
            "path in params.yaml, or set it to null for the embedded data"
        )
    return module.open_source(setting, root), False


def _open_aist(params: Params, aist: ModuleType, folder: Path) -> tuple[Source, bool]:
    setting = params.ingest.aist
    given = {name: getattr(setting, f"{name}_dir") for name in ("annotations", "videos", "music")}
    if setting.clips_dir is not None:
        for name, value in given.items():
            if value is not None:
                raise ValueError(
                    f"ingest.aist.{name}_dir must be null while clips_dir is given: got {value!r}; "
                    "use either the clips or the whole sequences"
                )
        from cdcd.data.adapters.clips import open_clips

        root = Path(setting.clips_dir).expanduser().resolve()
        return open_clips("aist", root, setting.clip_seconds, "ingest.aist.clips_dir"), False
    if given["annotations"] is None:
        for name in ("videos", "music"):
            if given[name] is not None:
                raise ValueError(
                    f"ingest.aist.{name}_dir must be null while annotations_dir is null (embedded "
                    f"data): got {given[name]!r}; give annotations_dir as well"
                )
        root = folder / EMBEDDED
        _write_embedded(params, "aist", root)
        roots = aist.Roots(root / "annotations", root / "videos", root / "music")
        return aist.open_source(setting, roots), True
    named = [value and Path(value).expanduser().resolve() for value in given.values()]
    return aist.open_source(setting, aist.Roots(*named)), False


def _write_embedded(params: Params, dataset: str, root: Path) -> None:
    module = import_module(f"cdcd.data.embedded.{dataset}")
    size = getattr(params.ingest, dataset).embedded.model_dump()
    ingest = params.ingest
    module.write_download(root, seed=ingest.seed, num_workers=ingest.num_workers, **size)


def describe_source(source: Source, raw_dir: Path) -> dict[str, Any]:
    """Return what `source.json` says; folders inside `raw_dir` are named relative to it."""
    roots = {}
    for name, folder in source.roots.items():
        inside = folder.is_relative_to(raw_dir)
        # Relative, so that the folder can be moved, cached and restored elsewhere.
        roots[name] = folder.relative_to(raw_dir).as_posix() if inside else str(folder)
    return {
        "dataset": source.dataset,
        "kind": type(source).__name__,
        "roots": roots,
        "settings": dict(source.settings),
    }


def restore_source(facts: dict[str, Any], raw_dir: Path) -> Source:
    """Return the source that `describe_source` described.

    Raises:
        KeyError: it is none.
    """
    module = import_module(f"cdcd.data.adapters.{_SOURCES[facts['kind']]}")
    roots = {name: raw_dir / folder for name, folder in facts["roots"].items()}
    source: Source = getattr(module, facts["kind"])(roots=roots, settings=facts["settings"])
    return source


__all__ = [
    "EMBEDDED_LICENCE",
    "Expected",
    "Finding",
    "Options",
    "Source",
    "check_download",
    "describe_source",
    "open_dataset",
    "restore_source",
]
