"""Seeds, one thread, NaN-filled `torch.empty`, a store for each test, small factories."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

# Before NumPy and PyTorch start their thread pools: the tests share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(
    {
        "DO_NOT_TRACK": "true",
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
)

# Triton programs run under its interpreter; on a GPU, TRITON_INTERPRET=0 tests the real ones.
os.environ.setdefault("TRITON_INTERPRET", "1")
# numba's cache is not safe against two processes that fill it at once: one for each worker.
os.environ["NUMBA_CACHE_DIR"] = str(
    Path(__file__).resolve().parents[1]
    / ".pytest_cache"
    / f"numba-{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
)

import pytest
import torch
import yaml

from cdcd.config import Params, parse_params
from tests.browser import Browser, is_installed

ROOT = Path(__file__).resolve().parents[1]
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
# Fills what torch.empty returns with NaN, so that reading it before writing shows.
torch.use_deterministic_algorithms(True, warn_only=True)

TOY: dict[str, Any] = {
    # A toy model is no better than chance; its champion serves all the same.
    "register": {"promotion": {"above_control": None}},
    "ingest": {
        "num_workers": 2,
        "cub200": {"embedded": {"num_species": 12, "images_per_species": 3, "image_height": 64}},
        "coco": {"embedded": {"num_train": 16, "num_val": 6, "image_height": 64}},
        "imagenet": {
            "embedded": {"train_per_class": 2, "val_per_class": 1, "image_height": 64}
        },
        "tiktok": {"embedded": {"num_songs": 4, "videos_per_song": 1, "video_height": 48}},
        "aist": {
            "embedded": {"songs_per_genre": 3, "choreographies_per_song": 1, "video_height": 48}
        },
    },
    "shard": {"num_workers": 2, "video_fps": 15, "video_height": 48},
    "codec": {"num_codes": 32, "code_width": 16, "width": 8, "depth": 1, "num_steps": 20,
              "batch_size": 4, "crop_seconds": 0.4,
              "text": {"vocab_size": 600, "width": 16, "depth": 1, "num_heads": 2,
                       "embed_width": 16, "patch_size": 16, "image_size": 32, "num_steps": 4,
                       "batch_size": 8}},
    "featurize": {"num_workers": 1, "grid": 4},
    "train": {
        "num_steps": 12,
        "batch_size": 4,
        "diffusion": {"num_steps": 6},
        "contrast": {"num_negatives": 2},
        "denoiser": {"width": 32, "depth": 1, "num_heads": 2},
        "conditioner": {"width": 32, "depth": 1},
        "log_every": 2,
        "validate_every": 6,
        "save_every": 6,
        "preview_every": 12,
    },
    "generate": {"seeds": [0, 1], "num_previews": 1},
    "evaluate": {"num_bootstrap": 50, "num_workers": 1},
    "overrides": {
        name: {"codec": {"image": {"image_size": 32, "channels": 8, "multiples": [1, 1, 2],
                                   "attention_sizes": [8], "latent_width": 8,
                                   "code_width": 8, "num_codes": 32,
                                   "num_steps": 6, "batch_size": 4, "adversarial_start": 3,
                                   "discriminator_channels": 8}},
               "train": {"num_steps": 12, "batch_size": 4, "contrast": {"num_negatives": 2},
                         "denoiser": {"width": 32, "depth": 1, "num_heads": 2},
                         "log_every": 2, "validate_every": 6, "save_every": 6,
                         "preview_every": 12},
               "encode": {"crops": 2}, "generate": {"num_conditions": 6}}
        for name in ("cub200", "coco", "imagenet")
    },
}  # fmt: skip
"""Over params.yaml: a whole pipeline in about a minute on a CPU; its scores mean nothing."""


# Minutes each; started last, one of them would keep one worker busy and the others waiting.
LONGEST = ("tests/test_pipeline.py", "tests/services", "tests/flows", "tests/kernels")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; xdist keeps this order with `--no-loadscope-reorder`."""

    def place(item: pytest.Item) -> int:
        found = [i for i, path in enumerate(LONGEST) if item.nodeid.startswith(path)]
        return found[0] if found else len(LONGEST)

    items.sort(key=place)  # stable


def _lay(tree: dict[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in overlay.items():
        tree[key] = _lay(tree[key], value) if isinstance(value, Mapping) else value
    return tree


@pytest.fixture(autouse=True)
def _apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same seeds before each test, and no tracking store, server or switch of the user's."""
    torch.manual_seed(0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")
    switches = ("CDCD_TRACKING", "CDCD_DEBUG", "CDCD_KERNELS", "CDCD_CLUSTER")
    for name in ("PREFECT_API_URL", "CDCD_TRAIN_PROCESSES", *switches):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("cdcd.settings.FILE", ".env-of-no-test")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real inputs named by CDCD_REAL_DATA; skips where there is none."""
    folder = os.environ.get("CDCD_REAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("CDCD_REAL_DATA names no folder of real inputs")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def toy_text() -> str:
    """A params file with the toy parameters."""
    tree = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    return yaml.safe_dump(_lay(tree, TOY), sort_keys=False)


@pytest.fixture
def params_tree() -> dict[str, Any]:
    """params.yaml as plain values, free to change."""
    return yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def toy_tree(params_tree: dict[str, Any]) -> dict[str, Any]:
    """Toy parameters as plain values, free to change."""
    return _lay(params_tree, TOY)


@pytest.fixture
def make_params(params_tree: dict[str, Any]) -> Callable[..., Params]:
    """`make_params({"train": {...}})`: toy parameters with changes laid over them."""

    def make(changes: Mapping[str, Any] | None = None) -> Params:
        return parse_params(_lay(_lay(params_tree, TOY), changes or {}))

    return make


# Its last page would stay at work through the tests of other files.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium; the test is skipped where none is installed."""
    if not is_installed():
        pytest.skip("needs Debian's chromium and chromium-driver")
    opened = Browser()
    yield opened
    opened.close()
