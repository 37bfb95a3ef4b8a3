"""Pictures of texts and classes: the seed decides, neighbours do not, nothing is cut silently."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cdcd.diffusion import sampler as sampler_module
from cdcd.generation import PictureGenerator
from cdcd.generation import pictures as module
from cdcd.generation.pictures import MAX_NUM, Ask
from cdcd.models.model import ConditionalDenoiser
from cdcd.models.picture_conditioner import ClassSpec
from cdcd.pictures import GREY
from cdcd.training.device import Precision, make_autocast
from kernels.reverse_step import reverse_step
from tests.cdcd.generation import tiny_models
from tests.cdcd.generation.tiny_models import CLASS_NAMES, NUM_STEPS, SIDE

RED, BLUE = "a small red bird with black wings", "a blue bird"


def test_a_picture_depends_on_no_other_prompt(of_text: PictureGenerator) -> None:
    alone = of_text.generate_for_texts([RED], 2, seed=3, progress=False).images
    among = of_text.generate_for_texts(
        [BLUE, RED, "a green bird with a long beak"], 2, seed=3, progress=False
    ).images
    assert alone.shape == (2, SIDE, SIDE, 3)
    assert alone.dtype == np.uint8
    assert among.shape == (6, SIDE, SIDE, 3)
    np.testing.assert_array_equal(among[2:4], alone)
    assert not np.array_equal(alone[0], alone[1])


def test_seed_and_condition_decide(of_class: PictureGenerator) -> None:
    def made(label: int | str, seed: int) -> np.ndarray:
        return of_class.generate_for_classes([label], 3, seed, progress=False).images

    np.testing.assert_array_equal(made(2, 0), made("great grey owl", 0))
    assert not np.array_equal(made(2, 0), made(2, 1))
    assert not np.array_equal(made(2, 0), made(0, 0))


def test_a_picture_does_not_depend_on_how_many_are_asked_for(of_class: PictureGenerator) -> None:
    many = of_class.generate_for_classes([2], 9, seed=1, progress=False).images
    few = of_class.generate_for_classes([2], 2, seed=1, progress=False).images
    np.testing.assert_array_equal(many[:2], few)
    assert len({picture.tobytes() for picture in many}) == 9


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["text", "class"])
def test_a_picture_is_the_same_to_the_last_bit_in_any_company(
    of_text: PictureGenerator,
    of_class: PictureGenerator,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    precision: Precision,
) -> None:
    generator = of_text if kind == "text" else of_class
    monkeypatch.setattr(generator, "_autocast", make_autocast(torch.device("cpu"), precision))
    texts = [RED, BLUE, "a bird", "a long yellow bill " * 30, BLUE]
    asked = [Ask(texts[i] if kind == "text" else i % 4, seed=i // 2, index=i % 3) for i in range(5)]
    config = generator.default_sampler()
    alone = [generator.draw_batch([one], config)[0] for one in asked]
    for order in ([0, 1, 2, 3, 4], [4, 2, 0], [3, 1], [1, 3, 0, 4, 2, 1, 0]):
        together = generator.draw_batch([asked[i] for i in order], config)
        np.testing.assert_array_equal(together, np.stack([alone[i] for i in order]))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_scores_of_a_row_do_not_depend_on_how_many_there_are(
    of_class: PictureGenerator, monkeypatch: pytest.MonkeyPatch, guidance: float
) -> None:
    """Sharper than tokens: what the network says must be equal to the last bit."""
    seen: list[torch.Tensor] = []

    def spy(logits, *rest, **options):  # type: ignore[no-untyped-def]
        seen.append(logits.clone())
        return reverse_step(logits, *rest, **options)

    # As wide as real ones: elementwise functions round what goes beyond 32 numbers otherwise.
    wide = replace(tiny_models.spec(ClassSpec(4, 32)), width=32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ConditionalDenoiser(wide)
        for value in model.parameters():
            value.data += 0.3 * torch.randn_like(value)
    generator = PictureGenerator(
        model, of_class.codec, of_class.schedule, of_class.facts, of_class.device
    )
    monkeypatch.setattr(generator, "_autocast", make_autocast(torch.device("cpu"), "float32"))
    monkeypatch.setattr(sampler_module, "reverse_step", spy)
    config = generator.sampler(guidance)
    asked = [Ask(label, seed, 0) for seed, label in enumerate((3, 1, 2))]
    generator.draw_batch(asked, config)
    together, seen[:] = list(seen), []
    generator.draw_batch(asked[1:2], config)
    for alone, among in zip(seen, together, strict=True):
        assert torch.equal(alone[0], among[1])


def test_prompts_share_batches(of_text: PictureGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BATCH", 4)
    calls: list[int] = []
    handle = of_text.model.denoiser.register_forward_pre_hook(
        lambda network, given: calls.append(len(given[0]))
    )
    try:
        of_text.generate_for_texts([RED, BLUE, "a bird"], 2, guidance=1.0, progress=False)
    finally:
        handle.remove()
    assert calls == [4] * NUM_STEPS + [2] * NUM_STEPS
    assert not any(layer._forward_hooks for layer in of_text.model.modules())


def test_batches_are_bounded_and_can_be_drawn_alone(
    of_class: PictureGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = tiny_models.watch_batches(of_class, monkeypatch)
    monkeypatch.setattr(module, "MAX_BATCH", 3)
    config = of_class.default_sampler()
    parts = list(of_class.draw(1, 7, 5, config))
    assert sizes == [3, 3, 1]
    assert of_class.num_calls(7, config) == 3 * NUM_STEPS
    second = [Ask(1, 5, index) for index in (3, 4, 5)]
    np.testing.assert_array_equal(of_class.draw_batch(second, config), parts[1])
    assert not np.array_equal(parts[0], parts[1])


def test_a_batch_shrinks_with_the_size_of_its_logits(
    of_class: PictureGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert of_class.batch_size == module.MAX_BATCH_CPU
    monkeypatch.setattr(module, "BATCH_LOGITS", 16 * 24 * 5 + 1)
    assert of_class.batch_size == 5
    monkeypatch.setattr(module, "BATCH_LOGITS", 1)
    assert of_class.batch_size == 1


def test_decoding_in_parts_changes_nothing(
    of_class: PictureGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = torch.randint(0, 24, (5, 16), generator=torch.Generator().manual_seed(0))
    whole = of_class.decode(tokens)
    monkeypatch.setattr(module, "DECODED_PIXELS", 2 * SIDE * SIDE)
    np.testing.assert_allclose(of_class.decode(tokens).astype(int), whole, atol=1)
    assert of_class.image_size == whole.shape[1] == SIDE


def test_guidance_and_truncation_are_used(of_text: PictureGenerator) -> None:
    def made(**options: float) -> np.ndarray:
        return of_text.generate_for_texts([RED], 4, progress=False, **options).images  # type: ignore[arg-type]

    assert not np.array_equal(made(guidance=1.0), made(guidance=8.0))
    assert not np.array_equal(made(truncation=1.0), made(truncation=0.05))


def test_the_frames_end_with_the_picture_itself(of_text: PictureGenerator) -> None:
    frames = of_text.denoising_frames(RED, seed=4, progress=False)
    assert frames.shape == (NUM_STEPS + 1, SIDE, SIDE, 3)
    picture = of_text.generate_for_texts([RED], seed=4, progress=False).images[0]
    np.testing.assert_array_equal(frames[-1], picture)
    # All is masked at first: nothing is shown without the grey over it.
    distance = np.abs(frames[0].astype(int) - GREY).max()
    assert distance <= 0.35 * 128 + 1


def test_a_class_has_frames_as_well(of_class: PictureGenerator) -> None:
    frames = of_class.denoising_frames("tench", progress=False)
    np.testing.assert_array_equal(frames, of_class.denoising_frames(0, progress=False))


# Texts


def test_a_long_prompt_is_read_as_far_as_it_goes_and_told(of_text: PictureGenerator) -> None:
    long = ("a blue bird " * 1000)[:10_000]
    made = of_text.generate_for_texts([RED, long], progress=False)
    assert made.images.shape[0] == 2
    assert list(made.cuts) == [1]
    cut = made.cuts[1]
    assert cut.num_read == 77
    assert cut.num_dropped > 1000
    told = str(cut)
    assert told.startswith(f"the model reads 77 of {77 + cut.num_dropped} tokens: all after '")
    assert cut.end in long
    assert "\n" not in told


def test_a_model_of_shorter_texts_than_its_encoder_says_so(of_text: PictureGenerator) -> None:
    from copy import copy

    short = copy(of_text)
    short.model = copy(of_text.model)
    short.model.spec = replace(
        of_text.model.spec, conditioner=replace(of_text.model.spec.conditioner, num_positions=4)
    )
    prompt = short.check_text(RED)
    assert prompt.cut is not None
    assert prompt.cut.num_read == 4
    inputs = short.encode([RED])
    assert inputs.text is not None
    assert inputs.length is not None
    assert inputs.text.shape[1] == int(inputs.length) == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "a prompt must say something: got ''"),
        (" \t ", "a prompt must say something"),
        ("a bird\nwith wings", r"without control characters: got '\\n' at character 7"),
        ("a \x07 bird", r"without control characters: got '\\x07'"),
        ("x" * 200_000, "a prompt must have at most 100000 characters"),
    ],
)
def test_a_text_that_is_no_prompt_is_one_line(
    of_text: PictureGenerator, text: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        of_text.generate_for_texts([RED, text], progress=False)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_letters_of_other_alphabets_are_read(of_text: PictureGenerator) -> None:
    assert of_text.check_text(" маленькая красная птица ").text == "маленькая красная птица"
    assert len(of_text.generate_for_texts(["一只小红鸟"], progress=False).images) == 1


def test_a_text_without_any_known_word_is_refused(
    of_text: PictureGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = of_text.encoder
    assert encoder is not None
    original = encoder.tokenize

    def unknown(texts):  # type: ignore[no-untyped-def]
        tokens = original(texts)
        return tokens._replace(num_unknown=tokens.lengths - 2)

    monkeypatch.setattr(encoder, "tokenize", unknown)
    with pytest.raises(ValueError, match="words that the text encoder was trained on: got '鸟'"):
        of_text.check_text("鸟")


# Classes


@pytest.mark.parametrize(
    ("wanted", "label"),
    [(0, 0), ("3", 3), (" 1 ", 1), ("Tench", 0), ("TINCA  tinca", 0), ("tench, tinca tinca", 0)],
)
def test_a_class_has_a_number_and_names(
    of_class: PictureGenerator, wanted: int | str, label: int
) -> None:
    assert of_class.find_class(wanted) == label


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (4, r"class must lie in 0 \.\. 3: got 4; choose one of these, such as 0 \(tench"),
        ("-1", r"class must lie in 0 \.\. 3: got -1"),
        ("9" * 5000, r"class must lie in 0 \.\. 3: got 9{17}…"),
        ("grey owl", "got 'grey owl'; nearest: great grey owl"),
        ("crane", "'crane' names 1, 3; give the number"),
        ("", "got ''; nearest: "),
        ("鸟" * 5000, "nearest: "),
    ],
)
def test_a_class_that_is_none_is_one_line(
    of_class: PictureGenerator, wanted: int | str, words: str
) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        of_class.generate_for_classes([wanted], progress=False)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_without_names_classes_are_numbers(
    of_class: PictureGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(of_class.facts, "class_names", None)
    assert of_class.find_class("2") == 2
    with pytest.raises(ValueError, match="because this model knows no names: got 'owl'"):
        of_class.find_class("owl")


# What does not fit


@pytest.mark.parametrize("num", [0, -3, MAX_NUM + 1])
def test_a_number_of_pictures_out_of_range_is_one_line(
    of_class: PictureGenerator, num: int
) -> None:
    with pytest.raises(ValueError, match=rf"num must lie in 1 \.\. 10000: got {num}; use 1"):
        of_class.generate_for_classes([0], num, progress=False)


def test_what_the_model_cannot_read_is_refused(
    of_text: PictureGenerator, of_class: PictureGenerator
) -> None:
    with pytest.raises(ValueError, match="a class needs a model trained on classes: this one rea"):
        of_text.generate_for_classes([0], progress=False)
    with pytest.raises(ValueError, match="a text needs a model trained on captions: this one rea"):
        of_class.generate_for_texts([RED], progress=False)
    with pytest.raises(ValueError, match="at least one condition must be given"):
        of_class.generate_for_classes([], progress=False)
    blind = PictureGenerator(
        of_text.model, of_text.codec, of_text.schedule, of_text.facts, of_text.device
    )
    with pytest.raises(ValueError, match="a text needs the encoder the model was trained with"):
        blind.generate_for_texts([RED], progress=False)


def test_names_of_the_tests_are_those_of_the_model(of_class: PictureGenerator) -> None:
    assert of_class.class_names == CLASS_NAMES
    assert of_class.num_classes == len(CLASS_NAMES)
