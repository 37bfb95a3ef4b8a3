import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cdcd.features.base import FeatureError
from cdcd.features.text import (
    MEAN,
    STD,
    Preparation,
    PromptError,
    TextEncoder,
    check_prompt,
)
from tests.cdcd.features.tiny_clip import CAPTIONS, write_clip

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def encoder(source):
    return TextEncoder.load(source)


@pytest.fixture
def folder(source, tmp_path):
    """A copy that a test may break."""
    return Path(shutil.copytree(source, tmp_path / "copy"))


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, size, dtype=np.uint8) for size in ((32, 32, 3), (50, 41, 3))]


def change(path, **facts):
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def test_numbers_are_those_of_transformers(source, encoder, pictures):
    from transformers import CLIPModel, CLIPTokenizer

    texts = [*CAPTIONS[:5], "It's a bird, 3 wings!", "red", "été 赤い鳥"]
    model = CLIPModel.from_pretrained(source, local_files_only=True).eval()
    tokenizer = CLIPTokenizer.from_pretrained(source, local_files_only=True)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    pixels = torch.stack([encoder.preparation(picture) for picture in pictures])
    with torch.no_grad():
        expected = model(**inputs, pixel_values=pixels)
    tokens = encoder.tokenize(texts)
    torch.testing.assert_close(tokens.ids, inputs["input_ids"])
    torch.testing.assert_close(tokens.lengths, inputs["attention_mask"].sum(dim=1))
    torch.testing.assert_close(encoder.text_features(texts), expected.text_embeds)
    torch.testing.assert_close(encoder.image_features(pictures), expected.image_embeds)
    encoded = encoder.encode(texts)
    mask = inputs["attention_mask"].bool()
    states = expected.text_model_output.last_hidden_state
    torch.testing.assert_close(encoded.sequence[mask], states[mask])
    assert not encoded.sequence[~mask].any()


def test_files_of_transformers_are_read_as_well(source, encoder, tmp_path):
    from transformers import CLIPModel, CLIPTokenizer

    CLIPModel.from_pretrained(source, local_files_only=True).save_pretrained(tmp_path)
    CLIPTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(tmp_path)
    found = TextEncoder.load(tmp_path)
    torch.testing.assert_close(found.text_features(CAPTIONS), encoder.text_features(CAPTIONS))
    assert found.preparation == encoder.preparation


def test_layout_of_older_folders(folder, encoder):
    # Half precision, positions among the weights, no tokenizer.json, end token told as 2.
    state = {name: value.half() for name, value in load_file(folder / "model.safetensors").items()}
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    torch.save(state, folder / "pytorch_model.bin")
    for name in ("model.safetensors", "tokenizer.json", "preprocessor_config.json"):
        (folder / name).unlink()
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    found = TextEncoder.load(folder)
    expected = encoder.text_features(CAPTIONS)
    torch.testing.assert_close(found.text_features(CAPTIONS), expected, atol=5e-3, rtol=0)


def test_a_folder_with_the_encoder_inside(source, tmp_path):
    shutil.copytree(source, tmp_path / "text")
    assert TextEncoder.load(tmp_path).identity() == TextEncoder.load(source).identity()


def test_identity_names_weights_and_sizes(encoder):
    identity = encoder.identity()
    assert identity["name"] == "cdcd-small-clip"
    assert len(identity["sha256"]) == 64
    assert (identity["width"], identity["context_length"]) == (16, 77)
    assert json.loads(json.dumps(identity)) == identity


def test_loading_leaves_the_randomness_alone(source):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    loaded = TextEncoder.load(source)
    torch.testing.assert_close(torch.rand(2), expected)
    assert not any(value.requires_grad for value in loaded.model.parameters())
    assert not loaded.model.training


def test_vectors_have_length_one_whatever_the_batch(encoder, pictures):
    texts = encoder.text_features(CAPTIONS, batch_size=5)
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(len(CAPTIONS)))
    torch.testing.assert_close(texts, encoder.text_features(CAPTIONS))
    images = encoder.image_features(pictures, batch_size=1)
    torch.testing.assert_close(images, encoder.image_features(pictures))


def test_padding_changes_nothing(encoder):
    short, long = CAPTIONS[0], " ".join(CAPTIONS[:3])
    alone, together = encoder.encode([short]), encoder.encode([short, long])
    length = int(alone.lengths)
    torch.testing.assert_close(alone.sequence[0], together.sequence[0, :length])


@pytest.mark.parametrize("number", [75, 76, 200])
def test_long_texts_are_cut_and_told(encoder, caplog, number):
    text = " ".join(["red"] * number)
    tokens = encoder.tokenize([text, "red bird"])
    assert tokens.ids.shape == (2, 77)
    assert tokens.lengths[0] == 77
    assert tokens.ids[0, -1] == encoder.tokenize(["red"]).ids[0, -1]
    assert tokens.truncated.tolist() == [number > 75, False]
    assert tokens.num_dropped.tolist() == [number - 75, 0]
    cut = encoder.cut(text)
    with caplog.at_level(logging.WARNING):
        encoder.encode([text, "red bird", text])
    if number == 75:
        assert cut is None
        assert not caplog.records
    else:
        assert (cut.num_tokens, cut.num_dropped) == (number + 2, number - 75)
        assert cut.kept == " ".join(["red"] * 75)
        assert len(caplog.records) == 1
        assert "2 of 3 texts are longer than 77 tokens" in caplog.text


def test_the_marker_of_the_end_is_plain_text(encoder):
    end = int(encoder.tokenize(["red"]).ids[0, -1])
    for text in ("red <|endoftext|> bird", "red <|ENDOFTEXT|> bird", "<|startoftext|>"):
        tokens = encoder.tokenize([text])
        inner = tokens.ids[0, 1 : int(tokens.lengths) - 1]
        assert end not in inner
        assert int(tokens.ids[0, 0]) not in inner


def test_tokens_never_trained_are_counted(folder):
    state = load_file(folder / "model.safetensors")
    seen = TextEncoder.load(folder).tokenize(CAPTIONS).ids.unique()
    table = state["text_model.embeddings.token_embedding.weight"]
    kept = table[seen].clone()
    table.zero_()
    table[seen] = kept
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    encoder = TextEncoder.load(folder)
    assert encoder.check_prompt("a red bird") == "a red bird"
    tokens = encoder.tokenize(["a red bird", "птица"])
    assert tokens.num_unknown.tolist() == [0, 10]
    assert tokens.num_known.tolist()[1] == 0
    with pytest.raises(PromptError, match="must have words that the text encoder was trained on"):
        encoder.check_prompt("птица")


def test_half_known_prompts_are_told(folder, caplog):
    state = load_file(folder / "model.safetensors")
    encoder = TextEncoder.load(folder)
    table = state["text_model.embeddings.token_embedding.weight"]
    table[encoder.tokenize(["鳥"]).ids[0, 1:-1]] = 0
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    TextEncoder.load(folder).check_prompt("a red 鳥")
    assert "3 of the 5 tokens of the prompt mean nothing" in caplog.text


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("", "must say something: got ''"),
        (" \u3000 ", "must say something"),
        ("a bird\nwith wings", "got '\\n' at character 7"),
        ("a bird\r", "got '\\r' at character 7"),
        ("a\tbird", "got '\\t'"),
        ("a\x00bird", "got '\\x00'"),
        ("a\x1b[31mbird", "got '\\x1b'"),
        ("a\u2028bird", "got '\\u2028'"),
        ("a\ud800bird", "got '\\ud800'"),
        ("a bird " * 20_000, "at most 100000 characters: got 140000"),
        (None, "must be a text: got NoneType"),
    ],
)
def test_what_cannot_be_a_prompt_is_one_line(encoder, prompt, told):
    for check in (check_prompt, encoder.check_prompt):
        with pytest.raises(PromptError) as caught:
            check(prompt)
        message = str(caught.value)
        assert told in message
        assert len(message) < 250
        assert message.isprintable()


@pytest.mark.parametrize(
    "prompt", ["un pájaro rojo", "赤い鳥", "طائر أحمر", "🐦", "x", "a" * 10_000, "a bird " * 1400]
)
def test_other_prompts_are_taken(encoder, prompt):
    assert encoder.check_prompt(f" {prompt} ") == prompt.strip()
    assert torch.isfinite(encoder.encode([prompt]).sequence).all()


def test_a_long_prompt_says_what_is_not_read(encoder, caplog):
    encoder.check_prompt("a red bird " * 900)
    assert len(caplog.records) == 1
    assert "the last 2625 of its 2702 are not read, all behind" in caplog.text
    assert "\n" not in caplog.records[0].getMessage()


def test_preparation_scales_and_takes_the_centre():
    image = np.zeros((64, 128, 3), dtype=np.uint8)
    image[:, 32:96] = 255
    crop = Preparation(32, 32).crop(image)
    assert crop.shape == (32, 32, 3)
    assert crop.min() > 120
    assert (crop[:, 2:-2] == 255).all()


def test_preparation_is_that_of_pillow():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (75, 90, 3), dtype=np.uint8)
    scaled = Image.fromarray(image).resize((38, 32), Image.Resampling.BICUBIC)
    expected = np.asarray(scaled.crop((3, 0, 35, 32)))
    np.testing.assert_array_equal(Preparation(32, 32).crop(image), expected)
    prepared = Preparation(32, 32)(image)
    wanted = (expected / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(prepared.permute(1, 2, 0), wanted, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 40_000), (40_000, 1), (3, 500), (33, 32)])
def test_preparation_of_odd_sizes(size):
    assert Preparation(32, 32)(np.full((*size, 3), 7, dtype=np.uint8)).shape == (3, 32, 32)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)]
)
def test_no_picture_is_one_line(encoder, image):
    with pytest.raises(FeatureError, match=r"must be uint8 \[h, w, 3\]"):
        encoder.image_features([image])


def test_nothing_given_is_one_line(encoder):
    with pytest.raises(FeatureError, match="at least one text"):
        encoder.encode([])
    with pytest.raises(FeatureError, match="at least one picture"):
        encoder.image_features([])


def test_the_folder_decides_how_pictures_are_prepared(folder):
    change(folder / "preprocessor_config.json", size=40, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    preparation = TextEncoder.load(folder).preparation
    assert preparation == Preparation(32, 40, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("config.json", "it has no config.json"),
        ("model.safetensors", "no model.safetensors and no pytorch_model.bin"),
    ],
)
def test_a_missing_file_is_one_line(folder, name, told):
    (folder / name).unlink()
    with pytest.raises(FeatureError, match=told):
        TextEncoder.load(folder)


def test_missing_tokenizer_is_one_line(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "merges.txt").unlink()
    with pytest.raises(FeatureError, match=r"no tokenizer.json, and not both vocab.json"):
        TextEncoder.load(folder)
    with pytest.raises(FeatureError, match="no such folder"):
        TextEncoder.load(folder / "nothing")


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"]
)
def test_a_cut_file_is_one_line(folder, name):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(FeatureError, match=name) as caught:
        TextEncoder.load(folder)
    assert "\n" not in str(caught.value)


def test_other_architectures_are_one_line(folder):
    for kind in ("bert", "clip_text_model", None):
        change(folder / "config.json", model_type=kind)
        with pytest.raises(FeatureError, match=r"model_type clip\): got"):
            TextEncoder.load(folder)


def test_weights_of_another_shape_are_one_line(folder, tmp_path):
    other = write_clip(tmp_path / "other", width=24)
    shutil.copy(other / "model.safetensors", folder)
    with pytest.raises(FeatureError, match=r"must have shape \[.*\]: got \[.*\]; use both"):
        TextEncoder.load(folder)
    other = write_clip(tmp_path / "deeper", depth=3)
    shutil.copy(other / "model.safetensors", folder)
    with pytest.raises(FeatureError, match=r"an unknown \S+ \(0 missing, 32 unknown\)"):
        TextEncoder.load(folder)


def test_a_tokenizer_of_another_clip_is_one_line(folder):
    tree = json.loads((folder / "tokenizer.json").read_text())
    for token in ("<|endoftext|>", "<|startoftext|>"):
        tree["model"]["vocab"].pop(token, None)
    tree["added_tokens"] = []
    tree["post_processor"] = None
    tree["model"]["unk_token"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(FeatureError, match=r"must know <\|startoftext\|>"):
        TextEncoder.load(folder)


def test_a_tokenizer_without_start_and_end_is_one_line(folder):
    change(folder / "tokenizer.json", post_processor=None)
    with pytest.raises(FeatureError, match="around a text: got"):
        TextEncoder.load(folder)


def test_preparation_for_another_clip_is_one_line(folder):
    change(folder / "preprocessor_config.json", crop_size={"height": 224, "width": 224})
    with pytest.raises(FeatureError, match="must prepare pictures of 32 x 32"):
        TextEncoder.load(folder)


class _Payload:
    def __reduce__(self):
        return print, ("ran",)


def test_weights_that_run_code_are_refused(folder, capsys):
    (folder / "model.safetensors").unlink()
    torch.save({"a": _Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(FeatureError, match="must load without running code"):
        TextEncoder.load(folder)
    assert "ran" not in capsys.readouterr().out


def test_no_torchvision_and_no_network(source):
    script = (
        "import sys, socket\n"
        "def refuse(*_, **__): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "import cdcd.features.text\n"
        "assert 'transformers' not in sys.modules\n"
        "encoder = cdcd.features.text.TextEncoder.load(sys.argv[1])\n"
        "import numpy\n"
        "encoder.image_features(numpy.zeros((1, 40, 40, 3), numpy.uint8))\n"
        "encoder.text_features(['a red bird'])\n"
        "assert 'torchvision' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(source)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
