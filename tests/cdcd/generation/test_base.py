"""What all generators share: the task of a folder, sampler settings, what a hook sees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cdcd.diffusion.sampler import SamplerConfig
from cdcd.generation import PictureGenerator, read_task
from tests.cdcd.generation.tiny_models import NUM_CODES, NUM_STEPS


def test_the_task_is_read_without_the_weights(tiny_data: Path, tmp_path: Path) -> None:
    assert read_task(tiny_data / "models" / "cub200") == "text2image"
    with pytest.raises(ValueError, match=r"must hold model\.json and model\.safetensors"):
        read_task(tmp_path)
    for content, words in (
        ("{", "it is no JSON object; train again"),
        ("[]", "it is no JSON object; train again"),
        ("{}", "must be one of dance2music, text2image, class2image: got None"),
        ('{"task": "text2song"}', "got 'text2song'; train again"),
    ):
        (tmp_path / "model.json").write_text(content)
        with pytest.raises(ValueError, match=words) as caught:
            read_task(tmp_path)
        assert "\n" not in str(caught.value)


def test_settings_that_are_not_given_are_the_models(of_class: PictureGenerator) -> None:
    assert of_class.sampler() == SamplerConfig(0.9, 2.0, 1)
    assert of_class.sampler(3.0, 1.0) == SamplerConfig(1.0, 3.0, 1)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("truncation", 0.0, r"truncation must lie in \(0, 1\]: got 0.0; use 0.86"),
        ("truncation", float("nan"), r"truncation must lie in \(0, 1\]"),
        ("guidance", -0.1, "guidance must be a number of at least 0 and at most 100: got -0.1"),
        ("guidance", float("inf"), "guidance must be a number of at least 0"),
        ("guidance", 1e300, "guidance must be a number of at least 0 and at most 100: got 1e"),
        ("guidance", float("nan"), "guidance must be a number of at least 0"),
    ],
)
def test_a_setting_out_of_range_is_one_line(
    of_class: PictureGenerator, name: str, value: float, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        of_class.sampler(**{name: value})


def test_the_hook_sees_every_state_and_the_likeliest_tokens(of_class: PictureGenerator) -> None:
    inputs = of_class.encode([0, 2])
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    random = torch.Generator().manual_seed(0)
    last = of_class.sample_tokens(
        inputs, SamplerConfig(1.0, 2.0), random, on_tokens=lambda *pair: seen.append(pair)
    )
    assert len(seen) == NUM_STEPS
    assert bool((seen[0][0] == NUM_CODES).all())
    for z_t, likeliest in seen:
        assert z_t.shape == likeliest.shape == last.shape == (2, 16)
        assert int(likeliest.max()) < NUM_CODES
    again = of_class.sample_tokens(inputs, SamplerConfig(1.0, 2.0), random.manual_seed(0))
    assert torch.equal(last, again), "looking must not change what is drawn"


def test_where_nothing_is_given_guidance_is_skipped(of_class: PictureGenerator) -> None:
    inputs = of_class.encode([0, 2]).without()
    calls: list[int] = []
    handle = of_class.model.denoiser.register_forward_pre_hook(
        lambda module, given: calls.append(len(given[0]))
    )
    try:
        plain = of_class.sample_tokens(inputs, SamplerConfig(), torch.Generator().manual_seed(0))
        guided = of_class.sample_tokens(
            inputs, replace(SamplerConfig(), guidance=5.0), torch.Generator().manual_seed(0)
        )
    finally:
        handle.remove()
    assert torch.equal(plain, guided)
    assert set(calls) == {2}
