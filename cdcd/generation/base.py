"""Conditions to tokens: what all generators share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cdcd.config import MAX_GUIDANCE
from cdcd.data.samples import TASKS
from cdcd.diffusion.sampler import SamplerConfig, sample
from cdcd.diffusion.schedule import Schedule
from cdcd.models.inputs import Inputs
from cdcd.models.model import ConditionalDenoiser
from cdcd.training.device import make_autocast


def read_task(model_dir: str | Path) -> str:
    """The task of a trained model, such as `text2image`, without loading its weights.

    Raises:
        ValueError: there is no whole model.json, or its task is unknown.
    """
    path = Path(model_dir) / "model.json"
    try:
        task = json.loads(path.read_text(encoding="utf-8")).get("task")
    except OSError:
        raise ValueError(
            f"{model_dir} must hold model.json and model.safetensors: model.json is missing; "
            "train first (`dvc repro train`)"
        ) from None
    except (ValueError, AttributeError):
        raise ValueError(f"{path} must be whole: it is no JSON object; train again") from None
    known = list(dict.fromkeys(TASKS.values()))
    if task not in known:
        raise ValueError(
            f"task of {path} must be one of {', '.join(known)}: got {task!r}; train again, or use "
            "the version that trained it"
        )
    return str(task)


def read_sampler(path: str | Path | None) -> dict[str, Any] | None:
    """The sampler settings that a model was scored with, from a JSON with the key `sampler`.

    Args:
        path: `summary.json` of data/generated, or the `sampler` of a registered model.

    Returns:
        truncation, guidance, stride and perhaps window_overlap_seconds; None without such a file.

    Raises:
        ValueError: the file is there and broken.
    """
    if path is None or not Path(path).is_file():
        return None
    try:
        settings = dict(json.loads(Path(path).read_text(encoding="utf-8"))["sampler"])
        SamplerConfig(settings["truncation"], settings["guidance"], settings["stride"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path} must hold the settings of the sampler: it does not; run `dvc repro generate`"
        ) from None
    return settings


@contextmanager
def step_bar(total: int, is_shown: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar over network calls with the time left; gives what is to be called after each."""
    from tqdm import tqdm

    with tqdm(total=total, desc="generate", unit="step", disable=not is_shown) as bar:

        def advance(done: int, of: int) -> None:
            bar.update()

        yield advance


@contextmanager
def rows_apart(network: nn.Module) -> Iterator[None]:
    """Let linear layers multiply vectors [b, d], such as those of the step, one row at a time.

    On a CPU a product of a few rows rounds by how many they are: what stands beside a row would
    move its last bits. Products of sequences [b, l, d] have hundreds of rows and do not.
    """

    def multiply(layer: nn.Linear, given: tuple[Tensor], made: Tensor) -> Tensor:
        (x,) = given
        if x.ndim != 2:
            return made
        return torch.cat([functional.linear(row, layer.weight, layer.bias) for row in x.split(1)])

    handles = [
        layer.register_forward_hook(multiply)
        for layer in network.modules()
        if isinstance(layer, nn.Linear)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Generator:
    """A trained model that is ready to be sampled; sees conditions, never what it should make."""

    def __init__(
        self,
        model: ConditionalDenoiser,
        schedule: Schedule,
        facts: dict[str, Any],
        device: torch.device,
    ) -> None:
        self.model = model.to(device).eval()
        self.schedule = schedule
        self.facts = facts
        self.device = device
        self._autocast = make_autocast(device, "auto")

    @torch.no_grad()
    def sample_tokens(
        self,
        inputs: Inputs,
        config: SamplerConfig,
        random: torch.Generator | Sequence[torch.Generator],
        on_step: Callable[[int, int], None] | None = None,
        kept: Tensor | None = None,
        on_tokens: Callable[[Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """Tokens for a batch, int64 [b, l], from the full mask.

        Args:
            inputs: the conditions.
            config: truncation, guidance, stride; guidance is skipped where nothing is given.
            random: source of all draws; or one for each row, whose draws then do not depend on the
                rows beside it. The network's rounding does not either on a CPU, as a rule; on a GPU
                it may, which moves a token now and then.
            on_step: called after every network call with (calls done, calls in all).
            kept: given tokens [b, l], -1 where free.
            on_tokens: called at every network call with z_t [b, l], K where masked, and the
                likeliest tokens of z_0 [b, l] as the network sees them now.
        """
        b = len(inputs)
        is_guided = config.guidance != 1 and inputs.is_given
        if not is_guided:
            config = replace(config, guidance=1.0)
        denoiser = self.model.denoiser
        with self._autocast():
            condition = self.model.encode(inputs)
            if is_guided:
                # Both cases in one call: twice the rows is cheaper than twice the calls.
                condition = condition.joined(self.model.encode(inputs.without()))

        def predict(z_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
            null = None
            with self._autocast():
                if is_guided:
                    both = denoiser(torch.cat([z_t, z_t]), torch.cat([t, t]), condition)
                    logits, null = both[:b], both[b:]
                else:
                    logits = denoiser(z_t, t, condition)
            if on_tokens is not None:
                guided = logits if null is None else torch.lerp(null, logits, config.guidance)
                on_tokens(z_t, guided.argmax(-1))
            return logits, null

        shape = (b, self.model.spec.num_tokens)
        has_own = not isinstance(random, torch.Generator) and self.device.type == "cpu"
        with rows_apart(denoiser) if has_own else nullcontext():
            return sample(predict, self.schedule, shape, config, random, kept, on_step)

    def default_sampler(self) -> SamplerConfig:
        """The sampler settings the generator was loaded with."""
        s = self.facts["sampler"]
        return SamplerConfig(s["truncation"], s["guidance"], s["stride"])

    def sampler(
        self, guidance: float | None = None, truncation: float | None = None
    ) -> SamplerConfig:
        """The default sampler settings, but for those that are given.

        Raises:
            ValueError: one is out of range.
        """
        config = self.default_sampler()
        if guidance is not None:
            config = replace(config, guidance=guidance)
        if truncation is not None:
            config = replace(config, truncation=truncation)
        if not 0 < config.truncation <= 1:
            raise ValueError(f"truncation must lie in (0, 1]: got {config.truncation}; use 0.86")
        if not 0 <= config.guidance <= MAX_GUIDANCE:
            raise ValueError(
                f"guidance must be a number of at least 0 and at most {MAX_GUIDANCE:g}: got "
                f"{config.guidance}; use 1.5"
            )
        return config
