"""Times the kernels against their reference and against what others would write.

    python -m kernels.bench                        # everything, tables on the screen
    python -m kernels.bench posterior_loss --json benchmarks/kernels.json
    python -m kernels.bench --size 4 344 2048      # one size instead of the list

A kernel's tests run first, and one that fails them is not timed. Every line of a table is measured
in turn, round after round, so that a noisy machine disturbs all of them alike, and each time after
a call that is not timed; the number is the median, with the quartiles' distance as its spread.
Memory is bytes that must move, over the time; its share is of the bandwidth that a plain copy
reaches on the same device.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels import baselines, dispatch
from kernels.forward_noise import forward_noise
from kernels.inputs import Problem, problem
from kernels.nearest_code import nearest_code
from kernels.posterior_loss import PosteriorTerms, posterior_loss, weighted_posterior_loss
from kernels.reverse_step import reverse_step

logger = logging.getLogger(__name__)

GPU_SIZES = [(16, 344, 2048), (64, 344, 2048), (4, 1033, 2048), (16, 1024, 2887), (16, 256, 16384)]
CPU_SIZES = [(4, 344, 2048), (16, 86, 512)]
NEGATIVES = (0, 10, 100, 1000)
_SLOW_FROM = 100
"""From this N on the published algorithm, which builds K-wide tensors for each, is left out."""


@dataclass(frozen=True)
class Line:
    """One measurement.

    Attributes:
        kernel: folder of the operation.
        what: which implementation.
        size: shape as text.
        milliseconds: median of the rounds.
        spread: distance of the quartiles in milliseconds.
        ratio: how many times longer this takes than the project's own path.
        gigabytes_per_second: bytes that must move over the median, for the project's own path.
        share_of_copy: of the measured copy bandwidth.
        peak_megabytes: allocated on a GPU beyond the inputs.
    """

    kernel: str
    what: str
    size: str
    milliseconds: float
    spread: float
    ratio: float
    gigabytes_per_second: float | None = None
    share_of_copy: float | None = None
    peak_megabytes: float | None = None


def _sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _once(call: Callable[[], Any], device: torch.device) -> float:
    _sync(device)
    start = time.perf_counter()
    call()
    _sync(device)
    return time.perf_counter() - start


def _peak(call: Callable[[], Any], device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    _sync(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    _sync(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of a large `copy_`."""
    source = torch.ones(2**28 if device.type == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    seconds = [_once(lambda: target.copy_(source), device) for _ in range(12)]
    return 2 * source.numel() * 4 / statistics.median(seconds)


def compare(
    kernel: str,
    size: str,
    calls: Mapping[str, Callable[[], Any]],
    device: torch.device,
    rounds: int,
    num_bytes: int,
    bandwidth: float,
) -> list[Line]:
    """Measure calls in turn; the first of them is the project's own path."""
    peaks = {}
    for what, call in calls.items():
        call()  # compiles
        peaks[what] = _peak(call, device)
    seconds: dict[str, list[float]] = {what: [] for what in calls}
    for _ in range(rounds):
        for what, call in calls.items():
            call()  # the call before may have left caches and allocator to other sizes
            seconds[what].append(_once(call, device))
    own = next(iter(calls))
    lines = []
    for what, times in seconds.items():
        low, middle, high = statistics.quantiles(times, n=4)
        base = statistics.median(seconds[own])
        rate = num_bytes / middle if what == own else None
        lines.append(
            Line(
                kernel,
                what,
                size,
                1e3 * middle,
                1e3 * (high - low),
                middle / base,
                rate and rate / 1e9,
                rate and rate / bandwidth,
                peaks[what],
            )
        )
    return lines


def _backward(terms: PosteriorTerms, x: Problem) -> None:
    """The linear contrastive loss of the terms, and its gradient."""
    loss = terms.kl.mean() + 5e-4 * terms.aux.mean()
    if terms.neg_step is not None:
        loss = loss - 5e-5 * terms.neg_step.mean()
    torch.autograd.grad(loss, x.logits)


def _loss_calls(x: Problem, n: int, with_compiled: bool) -> dict[str, Callable[[], Any]]:
    share = 1.0 / (x.z_t.numel() or 1)
    weight = torch.tensor(share, device=x.logits.device)
    weights = {"kl": weight, "aux": 5e-4 * weight}
    if n:
        weights["neg_step"] = -5e-5 / n * weight

    def own() -> None:
        rows, _ = weighted_posterior_loss(x.logits, x.z_t, x.z_0, x.q, x.negatives, **weights)
        torch.autograd.grad(rows.sum(), x.logits)

    def with_terms() -> None:
        _backward(posterior_loss(x.logits, x.z_t, x.z_0, x.q, x.negatives), x)

    def of(function: Callable[..., PosteriorTerms]) -> Callable[[], None]:
        return lambda: _backward(function(x.logits, x.z_t, x.z_0, x.q, x.negatives), x)

    calls: dict[str, Callable[[], Any]] = {"this project": own, "... by terms": with_terms}
    if dispatch.explain(x.logits.device)[0] == "triton":
        calls["reference"] = _with_reference(own)
    calls["closed form, eager"] = of(baselines.closed_form)
    if with_compiled:
        compiled = of(torch.compile(baselines.closed_form))
        try:
            compiled()
        except Exception as error:  # no C++ compiler here, or one that torch.compile cannot use
            logger.warning("torch.compile is left out: %s", str(error).splitlines()[0])
        else:
            calls["closed form, torch.compile"] = compiled
    if n < _SLOW_FROM:
        calls["published algorithm, eager"] = of(baselines.published)
    return calls


def _with_reference(call: Callable[[], Any]) -> Callable[[], Any]:
    def reference() -> None:
        before = os.environ.get("CDCD_KERNELS")
        os.environ["CDCD_KERNELS"] = "reference"
        try:
            call()
        finally:
            if before is None:
                del os.environ["CDCD_KERNELS"]
            else:
                os.environ["CDCD_KERNELS"] = before

    return reference


def bench_posterior_loss(run: Run) -> Iterator[Line]:
    """Forward and backward pass of the loss over sizes and numbers of negatives."""
    for b, l, K in run.sizes:
        for n in run.negatives:
            x = problem(b, l, K, n, dtype=run.dtype, device=run.device)
            x.logits.requires_grad_()
            num_bytes = 2 * x.logits.numel() * x.logits.element_size()
            calls = _loss_calls(x, n, run.with_compiled)
            size = f"B={b} L={l} K={K} N={n}"
            yield from compare(
                "posterior_loss", size, calls, run.device, run.rounds, num_bytes, run.bandwidth
            )


def bench_reverse_step(run: Run) -> Iterator[Line]:
    """One sampling step with truncation 0.86."""
    for b, l, K in run.sizes:
        x = problem(b, l, K, 0, dtype=run.dtype, device=run.device)
        g = torch.Generator(run.device).manual_seed(0)
        uniforms = torch.rand(b, l, generator=g, device=run.device)

        def own(x: Problem = x, u: Tensor = uniforms) -> None:
            reverse_step(x.logits, x.z_t, x.q, u, 0.86)

        def eager(x: Problem = x, g: torch.Generator = g) -> None:
            baselines.eager_step(x.logits, x.z_t, x.q, g, 0.86)

        calls: dict[str, Callable[[], Any]] = {"this project": own}
        if dispatch.explain(run.device)[0] == "triton":
            calls["reference"] = _with_reference(own)
        calls["published algorithm, eager"] = eager
        num_bytes = x.logits.numel() * x.logits.element_size()
        yield from compare(
            "reverse_step", f"B={b} L={l} K={K}", calls, run.device, run.rounds, num_bytes,
            run.bandwidth,
        )  # fmt: skip


def bench_forward_noise(run: Run) -> Iterator[Line]:
    """Noise of a batch and of ten negative chains, against K-wide Gumbel noise."""
    for b, l, K in run.sizes:
        x = problem(b, l, K, 10, device=run.device)

        def own(x: Problem = x, K: int = K) -> None:
            forward_noise(x.z_0, x.q.B, x.q.C, K, 0, x.negatives)

        def gumbel(x: Problem = x, K: int = K) -> None:
            assert x.negatives is not None
            A, B, C = (y.float()[:, None, None] for y in (x.q.A, x.q.B, x.q.C))
            for tokens in [x.z_0, *x.negatives.unbind(1)]:
                p = B + A * torch.nn.functional.one_hot(tokens, K)
                p = torch.cat([p, C.expand(*tokens.shape, 1)], dim=-1)
                (p.log() - (-torch.rand_like(p).log()).log()).argmax(-1)

        calls = {"this project": own, "K-wide Gumbel noise, eager": gumbel}
        num_bytes = 2 * 11 * x.z_0.numel() * 8
        yield from compare(
            "forward_noise", f"B={b} L={l} K={K} N=10", calls, run.device, run.rounds, num_bytes,
            run.bandwidth,
        )  # fmt: skip


def bench_nearest_code(run: Run) -> Iterator[Line]:
    """Assignment and sums of rows to a codebook of width 64."""
    for b, l, K in run.sizes:
        g = torch.Generator().manual_seed(0)
        rows = torch.randn(b * l, 64, generator=g).to(run.device)
        codes = torch.randn(K, 64, generator=g).to(run.device)

        def own(rows: Tensor = rows, codes: Tensor = codes) -> None:
            nearest_code(rows, codes, has_statistics=True)

        def eager(rows: Tensor = rows, codes: Tensor = codes) -> None:
            found = torch.cdist(rows, codes).argmin(1)
            one_hot = torch.nn.functional.one_hot(found, len(codes)).float()
            one_hot.sum(0)
            one_hot.T @ rows

        calls = {"this project": own, "distance matrix and one-hot sums, eager": eager}
        num_bytes = 2 * rows.numel() * 4
        yield from compare(
            "nearest_code", f"rows={b * l} K={K} d=64", calls, run.device, run.rounds, num_bytes,
            run.bandwidth,
        )  # fmt: skip


BENCHES = {
    "posterior_loss": bench_posterior_loss,
    "reverse_step": bench_reverse_step,
    "forward_noise": bench_forward_noise,
    "nearest_code": bench_nearest_code,
}


@dataclass(frozen=True)
class Run:
    """What is measured where."""

    device: torch.device
    dtype: torch.dtype
    sizes: list[tuple[int, int, int]]
    negatives: tuple[int, ...]
    rounds: int
    with_compiled: bool
    bandwidth: float


def passes_tests(kernel: str) -> bool:
    """Run the tests of one kernel on this device."""
    folder = Path(__file__).parents[1] / "tests" / "kernels"
    interprets = "0" if torch.cuda.is_available() else "1"
    files = sorted(str(path) for path in folder.glob(f"test_{kernel}*.py"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not slow", *files],
        env=os.environ | {"TRITON_INTERPRET": interprets},
        cwd=folder.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        logger.error("%s", done.stdout[-3000:])
    return done.returncode == 0


def facts(run: Run) -> dict[str, Any]:
    """What a reader needs to judge the numbers."""
    import importlib.metadata

    gpu = torch.cuda.get_device_properties(run.device) if run.device.type == "cuda" else None
    driver = None
    if gpu:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    triton = importlib.metadata.version("triton") if dispatch.has_triton() else None
    return {
        "device": gpu.name if gpu else _processor(),
        "driver": driver,
        "threads": torch.get_num_threads(),
        "dtype": str(run.dtype).removeprefix("torch."),
        "kernels": dispatch.explain(run.device),
        "copy_gigabytes_per_second": run.bandwidth / 1e9,
        "torch": torch.__version__,
        "triton": triton,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "command": f"python -m kernels.bench {' '.join(sys.argv[1:])}".strip(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.split(":")[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def table(lines: list[Line]) -> str:
    """Markdown, one table a kernel."""
    parts = []
    for kernel in dict.fromkeys(line.kernel for line in lines):
        parts += [
            f"\n### {kernel}\n",
            "| size | what | ms | spread | times ours | GB/s | of copy | peak MB |",
            "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for line in (x for x in lines if x.kernel == kernel):
            rate = "" if line.gigabytes_per_second is None else f"{line.gigabytes_per_second:.1f}"
            share = "" if line.share_of_copy is None else f"{100 * line.share_of_copy:.0f} %"
            peak = "" if line.peak_megabytes is None else f"{line.peak_megabytes:.0f}"
            parts.append(
                f"| {line.size} | {line.what} | {line.milliseconds:.3g} | {line.spread:.2g} | "
                f"{line.ratio:.2f} | {rate} | {share} | {peak} |"
            )
    return "\n".join(parts)


def main() -> None:
    """Test, time, print, and write JSON where asked to."""
    parser = argparse.ArgumentParser(description="time the kernels")
    parser.add_argument("kernels", nargs="*", metavar="kernel", help=f"of {', '.join(BENCHES)}")
    parser.add_argument("--size", nargs=3, type=int, metavar=("B", "L", "K"))
    parser.add_argument("--negatives", nargs="+", type=int, default=list(NEGATIVES))
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    unknown = set(options.kernels) - set(BENCHES)
    if unknown:
        parser.error(f"kernels must be of {', '.join(BENCHES)}: got {', '.join(sorted(unknown))}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = CPU_SIZES if device.type == "cpu" else GPU_SIZES
    run = Run(
        device,
        getattr(torch, options.dtype),
        [tuple(options.size)] if options.size else sizes,
        tuple(options.negatives),
        options.rounds or (50 if device.type == "cuda" else 11),
        not options.no_compile,
        copy_bandwidth(device),
    )
    sys.stdout.write(f"{json.dumps(facts(run), indent=1)}\n")
    lines: list[Line] = []
    failed = []
    for kernel in options.kernels or BENCHES:
        if not passes_tests(kernel):
            failed.append(kernel)
            continue
        mine: list[Line] = []
        for line in BENCHES[kernel](run):
            mine.append(line)
            logger.info("%s: %s: %s: %.3g ms", kernel, line.size, line.what, line.milliseconds)
        sys.stdout.write(f"{table(mine)}\n")
        lines += mine
    if options.json:
        temporary = options.json.with_suffix(".tmp")
        text = json.dumps({"facts": facts(run), "lines": [asdict(x) for x in lines]}, indent=1)
        temporary.write_text(text + "\n")
        temporary.replace(options.json)
    if failed:
        sys.exit(f"not timed, because their tests fail: {', '.join(failed)}")


if __name__ == "__main__":
    main()
