"""Pictures: contrast against vanilla at equal compute, seconds per picture, models at paper scale.

    python -m benchmarks.images variants DATASET [--steps N] [--out FILE]
    python -m benchmarks.images speed DATASET
    python -m benchmarks.images paper [--checkpoint]

`variants` takes tokens, captions or classes, codec and encoder that `make run DATASETS=DATASET`
left, trains the denoiser once for each contrast with the same seed, steps and batches, and scores
all of them on the held-out conditions as the evaluate stage does. `speed` times `cdcd generate`'s
path. `paper` runs one forward and backward pass of each network at paper scale, batch 1, each in a
process of its own. All print Markdown tables.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

VARIANTS: dict[str, dict[str, Any]] = {
    "vanilla": {"mode": "off"},
    "step-intra": {"mode": "step", "negatives": "intra"},
    "sample-inter": {"mode": "sample", "negatives": "inter"},
}
SCORES = ("attribute_accuracy", "class_accuracy", "clip_s", "fid", "bits_per_token")


def write(lines: Iterable[str]) -> None:
    """Lines to standard output."""
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def folders(dataset: str) -> dict[str, Path]:
    """What `make run` left of a dataset."""
    names = {
        "tokens_dir": "tokens",
        "features_dir": "features",
        "codec_dir": "codecs",
        "encoder_dir": "encoders",
        "shards_dir": "shards",
    }
    return {name: Path("data") / folder / dataset for name, folder in names.items()}


def run_variant(dataset: str, name: str, steps: int | None, root: Path) -> dict[str, Any]:
    """Train, generate and score one variant; the metrics tree with the seconds of training."""
    from cdcd.config import load_params, parse_params
    from cdcd.evaluation.pictures import evaluate_pictures
    from cdcd.tasks import generate_split, train_model

    tree = load_params().of(dataset).model_dump(by_alias=True)
    tree["train"]["contrast"].update(VARIANTS[name])
    tree["train"]["num_steps"] = steps or tree["train"]["num_steps"]
    params = parse_params(tree | {"datasets": ["aist"]})
    paths, out = folders(dataset), root / name
    started = time.perf_counter()
    train_model(
        params,
        dataset=dataset,
        tokens_dir=paths["tokens_dir"],
        features_dir=paths["features_dir"],
        codec_dir=paths["codec_dir"],
        out_dir=out / "model",
        checkpoint_dir=out / "checkpoint",
    )
    seconds = time.perf_counter() - started
    generate_split(params, model_dir=out / "model", out_dir=out / "generated", **paths)
    metrics = evaluate_pictures(
        params,
        dataset=dataset,
        generated_dir=out / "generated",
        model_dir=out / "model",
        metrics_path=out / "metrics.json",
        plot_path=out / "metrics.png",
        report_dir=out / "report",
        **paths,
    )
    return {"systems": metrics["systems"], "seconds": seconds, "steps": params.train.num_steps}


def cell(value: Any) -> str:
    """Mean over seeds, its spread, and the interval over conditions."""
    if value is None:
        return "–"
    if not isinstance(value, dict):
        return f"{value:.3f}"
    spread = "" if value.get("std_seeds") is None else f" ± {value['std_seeds']:.3f}"
    interval = ""
    if value.get("ci_low") is not None:
        interval = f" [{value['ci_low']:.3f}, {value['ci_high']:.3f}]"
    return f"{value['mean']:.3f}{spread}{interval}"


def variants(dataset: str, steps: int | None, out: Path | None) -> None:
    """Print the table of all variants; controls come from the first."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in VARIANTS:
            found[name] = run_variant(dataset, name, steps, Path(temporary))
            if out is not None:
                out.write_text(json.dumps({dataset: found}, indent=1) + "\n", encoding="utf-8")
    first = found["vanilla"]["systems"]
    used = [score for score in SCORES if any(score in row for row in first.values())]
    lines = [
        f"| {dataset} | " + " | ".join(used) + " | training, relative |",
        "| --- |" + " --- |" * (len(used) + 1),
    ]
    for name, result in found.items():
        ratio = result["seconds"] / found["vanilla"]["seconds"]
        for system in ("model", "shuffled", "unconditioned"):
            cells = [cell(result["systems"][system].get(score)) for score in used]
            lines.append(f"| {name}: {system} | " + " | ".join(cells) + f" | {ratio:.2f} |")
    for system in ("real", "codec_reconstruction"):
        cells = [cell(first[system].get(score)) for score in used]
        lines.append(f"| {system} | " + " | ".join(cells) + " | – |")
    write([*lines, f"{found['vanilla']['steps']} steps each, the same seed and batches."])


def speed(dataset: str) -> None:
    """Print seconds per picture for one and for many at a time, and the peak memory."""
    from cdcd.config import load_params
    from cdcd.tasks import load_generator, sampler_of

    params, paths = load_params().of(dataset), folders(dataset)
    model_dir = Path("data") / "models" / dataset
    generator: Any = load_generator(
        model_dir, paths["codec_dir"], paths["encoder_dir"], sampler_of(params)
    )
    asked: Any = "a small red bird with black wings" if generator.reads_text else 3
    make = generator.generate_for_texts if generator.reads_text else generator.generate_for_classes
    make([asked], 1, progress=False)
    lines = ["| pictures | seconds per picture |", "| --- | --- |"]
    for num in (1, 16, 64):
        started = time.perf_counter()
        make([asked], num, progress=False)
        lines.append(f"| {num} | {(time.perf_counter() - started) / num:.3f} |")
    lines.append(f"Peak memory {peak_gib():.2f} GiB; {params.generate.stride} steps per call.")
    write(lines)


def peak_gib() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _one_pass(name: str, checkpoint: bool, answer: Any) -> None:
    import torch

    from cdcd.diffusion.schedule import make_schedule
    from cdcd.models.inputs import ConditionInputs, Inputs, PictureInputs
    from cdcd.models.model import ConditionalDenoiser
    from cdcd.models.paper import paper_spec
    from kernels.posterior_loss import posterior_loss

    torch.manual_seed(0)
    spec = paper_spec(name, checkpoint_blocks=checkpoint)  # type: ignore[arg-type]
    model = ConditionalDenoiser(spec).train()
    yes = torch.ones(1, dtype=torch.bool)
    inputs: Inputs
    if name == "dance2music":
        inputs = ConditionInputs(
            torch.randn(1, 120, 219), torch.randn(1, 2, 1024), torch.tensor([3]), yes, yes
        )
    elif name == "text2image":
        inputs = PictureInputs(torch.randn(1, 77, 512), torch.tensor([20]), None, yes)
    else:
        inputs = PictureInputs(None, None, torch.tensor([7]), yes)
    schedule = make_schedule("alpha1", spec.num_codes, spec.num_steps, 0.0)
    z_0 = torch.randint(spec.num_codes, (1, spec.num_tokens))
    z_t = torch.where(torch.rand(1, spec.num_tokens) < 0.5, spec.num_codes, z_0)
    t = torch.tensor([40])
    started = time.perf_counter()
    logits = model(z_t, t, inputs)
    loss = posterior_loss(logits, z_t, z_0, schedule.coefficients(t)).kl.mean()
    forward = time.perf_counter() - started
    loss.backward()
    backward = time.perf_counter() - started - forward
    is_finite = bool(torch.isfinite(loss)) and all(
        bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None
    )
    num = sum(p.numel() for p in model.parameters())
    answer.send((num, spec.num_tokens, forward, backward, peak_gib(), is_finite))


def paper(names: Sequence[str], checkpoint: bool) -> None:
    """Print parameters, tokens, seconds and peak memory of each network at paper scale."""
    lines = [
        "| network | parameters, M | tokens | forward, s | backward, s | peak, GiB | finite |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    spawn = multiprocessing.get_context("spawn")
    for name in names:
        receiver, sender = spawn.Pipe(duplex=False)
        process = spawn.Process(target=_one_pass, args=(name, checkpoint, sender))
        process.start()
        sender.close()
        num, tokens, forward, backward, peak, is_finite = receiver.recv()
        process.join()
        lines.append(
            f"| {name} | {num / 1e6:.1f} | {tokens} | {forward:.1f} | {backward:.1f} | {peak:.1f} "
            f"| {'yes' if is_finite else 'NO'} |"
        )
    write(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.images",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    compared = commands.add_parser("variants")
    compared.add_argument("dataset")
    compared.add_argument("--steps", type=int)
    compared.add_argument("--out", type=Path)
    commands.add_parser("speed").add_argument("dataset")
    large = commands.add_parser("paper")
    large.add_argument("--checkpoint", action="store_true")
    chosen = parser.parse_args()
    match chosen.command:
        case "variants":
            variants(chosen.dataset, chosen.steps, chosen.out)
        case "speed":
            speed(chosen.dataset)
        case _:
            names = ("text2image", "class2image", "class2image_370m")
            paper(names, chosen.checkpoint)


if __name__ == "__main__":
    main()
