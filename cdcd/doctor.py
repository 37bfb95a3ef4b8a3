"""One screen on what is installed, what will run where, and what is missing and would enable."""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from cdcd import reachable, workspace
from cdcd.config import ConfigError, Params, load_params
from cdcd.settings import FILE, INTERNAL, SETTINGS, SettingsError, load_env

DISTRIBUTION = "cdcd"
GIGABYTE = 10**9


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0]))[:3]


def _needed() -> Iterator[tuple[str, str, str]]:
    """Name, version rule and extra of each requirement in the installed metadata."""
    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return
    for line in lines:
        requirement, _, marker = line.partition(";")
        match = re.match(r"([A-Za-z0-9._-]+)(?:\[.*\])?\s*\(?([^()]*)\)?", requirement.strip())
        extra = re.search(r"extra == ['\"](\w+)['\"]", marker)
        if match and match[1] != DISTRIBUTION:
            yield match[1], match[2].strip(), extra[1] if extra else "core"


def satisfies(installed: str, rule: str) -> bool:
    """Whether a version meets rules like `>=2.0,<2.1`."""
    have = _version(installed)
    for part in filter(None, (p.strip() for p in rule.split(","))):
        match = re.match(r"(>=|<=|==|<|>)\s*(.+)", part)
        if not match:
            continue
        want = _version(match[2])
        size = max(len(have), len(want))
        left, right = (v + (0,) * (size - len(v)) for v in (have, want))
        holds = {
            ">=": left >= right,
            "<=": left <= right,
            "==": left == right,
            "<": left < right,
            ">": left > right,
        }[match[1]]
        if not holds:
            return False
    return True


def _packages() -> Iterator[str]:
    by_extra: dict[str, list[str]] = {}
    for name, rule, extra in _needed():
        try:
            have = importlib.metadata.version(name)
            text = f"{name} {have}"
            if not satisfies(have, rule):
                text += f" (NEEDS {rule})"
        except importlib.metadata.PackageNotFoundError:
            text = f"{name} MISSING (needs {rule or 'any'})"
        by_extra.setdefault(extra, []).append(text)
    if not by_extra:
        yield "packages: cdcd is not installed; run `make run` or `pip install -e '.[all]'`"
    for extra, texts in by_extra.items():
        yield f"{extra}: {', '.join(texts)}"


def _threads() -> str:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"threads: {torch.get_num_threads()} for PyTorch of {cores} CPU cores"


def _device() -> Iterator[str]:
    if importlib.util.find_spec("torch") is None:
        yield "device: unknown, torch is MISSING"
        return
    import torch

    from cdcd.training.device import has_fast_bfloat16, pick_device

    device = pick_device()
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name = f"{properties.name}, {properties.total_memory / GIGABYTE:.0f} GB"
    why = "" if device.type == "cuda" else "; PyTorch finds no CUDA device"
    yield f"device: {device.type} ({name}{why})"
    yield _threads()
    bf16 = has_fast_bfloat16(device)
    yield "precision: " + (
        "bfloat16 in hardware, used when train.precision is auto"
        if bf16
        else "float32; this device has no fast bfloat16"
    )


def _kernels() -> str:
    if importlib.util.find_spec("torch") is None:
        return "kernels: none can run: PyTorch is not installed"
    from cdcd.training.device import pick_device
    from kernels import dispatch

    try:
        backend, why = dispatch.explain(pick_device())
    except ValueError as error:
        return f"kernels: none can run: {error}"
    return f"kernels: {'our Triton programs' if backend == 'triton' else 'PyTorch'}: {why}"


def _params() -> tuple[Params | None, str]:
    try:
        params = load_params()
    except ConfigError as error:
        return None, f"params: {error}"
    line = f"params: params.yaml is valid; datasets {', '.join(params.datasets)}"
    return params, "; ".join([line, *_wrong_schedules(params)])


def _wrong_schedules(params: Params) -> Iterator[str]:
    """What `flows.serve` would refuse."""
    s = params.schedules
    try:
        ZoneInfo(s.timezone)
    except (KeyError, ValueError, OSError):  # unknown, malformed, a folder
        yield f"schedules.timezone {s.timezone[:40]!r} IS NO IANA NAME such as Europe/Vienna"
    if importlib.util.find_spec("cronsim") is None:
        return
    from cronsim import CronSim, CronSimError

    for name in ("nightly", "evaluate", "refresh_data"):
        cron = getattr(s, name)
        try:
            if cron is not None:
                CronSim(cron, datetime.now(UTC))
        except CronSimError:
            yield f"schedules.{name} IS NO CRON ({cron[:40]!r}); use five fields or null"


def _settings() -> str:
    try:
        from_file = load_env()
    except SettingsError as error:
        return f"settings: {FILE} CANNOT BE USED, and nothing below knows it: {error}"
    have = [name for name in SETTINGS if os.environ.get(name)]
    told = [f"{name} ({FILE})" if name in from_file else name for name in have]
    unknown = sorted(
        name
        for name in os.environ
        if name.startswith("CDCD_") and name not in SETTINGS and name not in INTERNAL
    )
    parts = [f"set: {', '.join(told)}" if told else f"none set; {FILE}.example lists them"]
    parts += [f"{name} IS UNKNOWN" for name in unknown]
    parts += [f"{name}: IS {meant} MEANT?" for name, meant in _misspelt(from_file)]
    return f"settings: {'; '.join(parts)}"


def _misspelt(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Names in `.env` that resemble a setting which is not set, and that setting.

    MLflow, Prefect and AWS read more than `SETTINGS`: another name alone is no mistake.
    """
    unset = [name for name in SETTINGS if not os.environ.get(name)]
    for name in names:
        if name not in SETTINGS and not name.startswith("CDCD_"):
            yield from ((name, meant) for meant in difflib.get_close_matches(name, unset, 1, 0.85))


def _reachable(params: Params | None) -> Iterator[str]:
    """The servers are asked at once, each with its own limit of seconds."""
    names = params.register_.names if params else None
    wanted = sorted({getattr(names, d) for d in params.datasets}) if params else []
    checks: list[Callable[[], list[str]]] = [
        lambda: list(reachable.tracking(wanted)),
        lambda: [workspace.waiting_runs()],
        lambda: [reachable.prefect()],
        lambda: [reachable.webhook()],
        lambda: list(reachable.others()),
        lambda: list(workspace.remotes(Path.cwd())),
        lambda: list(workspace.locks(Path.cwd())),
        lambda: list(workspace.git_identity(Path.cwd())),
    ]
    with ThreadPoolExecutor(len(checks)) as pool:
        for lines in pool.map(_safely, checks):
            yield from (f"  {line}" for line in lines)


def _safely(check: Callable[[], list[str]]) -> list[str]:
    try:
        return check()
    except Exception as error:  # whatever is wrong here, the other lines are wanted as well
        return [f"a check FAILED: {type(error).__name__}: {' '.join(str(error).split())[:200]}"]


def _dvc() -> str:
    if importlib.util.find_spec("dvc") is None:
        return "dvc: MISSING; install the extra `pipeline`"
    if not Path("dvc.yaml").is_file() or not Path(".dvc").is_dir():
        return "dvc: no pipeline here; run from the repository's root"
    git = (
        shutil.which("git") is not None
        and (
            subprocess.run(["git", "rev-parse", "--git-dir"], capture_output=True, check=False)
        ).returncode
        == 0
    )
    where = "in a Git clone" if git else "NOT in a Git clone, which DVC needs"
    state = "dvc.lock says what ran" if Path("dvc.lock").is_file() else "nothing ran yet"
    return f"dvc: dvc.yaml {where}; {state}"


def _trained(params: Params | None) -> Iterator[str]:
    for dataset in params.datasets if params else ["aist"]:
        found = [
            f"data/{kind}/{dataset}"
            for kind, file in (("models", "model.safetensors"), ("codecs", "codec.safetensors"))
            if (Path("data") / kind / dataset / file).is_file()
        ]
        if len(found) == 2:
            yield f"model: {' and '.join(found)}; `cdcd generate` uses them"
        else:
            yield f'model: none trained on {dataset}; `make run DATASETS="{dataset}"` trains one'


def _weights(params: Params | None) -> Iterator[str]:
    entries = (
        (
            "codec.weights",
            params.codec.weights if params else None,
            "a released Jukebox vqvae.pth.tar: the music codec without training one",
        ),
        (
            "featurize.i3d_weights",
            params.featurize.i3d_weights if params else None,
            "a pytorch-i3d state dict: I3D video features (featurize.video: i3d)",
        ),
        (
            "evaluate.vggish_weights",
            params.evaluate.vggish_weights if params else None,
            "a VGGish state dict: genre features and FAD as in the literature "
            "(evaluate.genre_feature: vggish)",
        ),
        (
            "codec.image.weights",
            params.codec.image.weights if params else None,
            "a taming-transformers checkpoint, with codec.image.mapping: the paper's picture codec",
        ),
        (
            "codec.text.weights",
            params.codec.text.weights if params else None,
            "a folder of CLIP ViT-B/32 in the hub's layout: the paper's text encoder",
        ),
        (
            "evaluate.image.inception_weights",
            params.evaluate.image.inception_weights if params else None,
            "the FID Inception's state dict: FID as in the literature (evaluate.image.features: "
            "inception)",
        ),
        (
            "evaluate.image.resnet_weights",
            params.evaluate.image.resnet_weights if params else None,
            "a ResNet-101 in torchvision's layout: top-5 accuracy as in the paper",
        ),
    )
    for key, path, enables in entries:
        if path is None:
            yield f"  {key}: not set; would enable {enables}"
        elif Path(path).exists():
            yield f"  {key}: {path}"
        else:
            yield f"  {key}: {path} is MISSING; would enable {enables}"


def report() -> str:
    """The whole screen as text, at most about 110 columns wide."""
    settings = _settings()  # first: what they say decides about the rest
    params, params_line = _params()
    lines = [
        f"python: {platform.python_version()} (needs 3.11 or newer) at {sys.executable}",
        *_packages(),
        *_device(),
        _kernels(),
        params_line,
        _dvc(),
        *_trained(params),
        workspace.disks(Path.cwd()),
        settings,
        "reachable:",
        *_reachable(params),
        "optional weights, by path in params.yaml:",
        *_weights(params),
    ]
    wrapped = (
        textwrap.wrap(line, 110, subsequent_indent="    ", break_on_hyphens=False) for line in lines
    )
    return "\n".join(line for group in wrapped for line in group)
