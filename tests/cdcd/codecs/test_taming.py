"""The released layouts are written down here name by name, independently of the loader."""

import logging
import pickle
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cdcd.codecs.openai import WeightsError
from cdcd.codecs.store import load_picture_codec, save_codec
from cdcd.codecs.taming import F16, GUMBEL_F8, load_taming, read_mapping, taming_shapes
from cdcd.codecs.vqgan import VQGAN

TINY = {
    "channels": 4,
    "multiples": (1, 1, 2),
    "num_res_blocks": 2,
    "attention_levels": (2,),
    "latent_width": 6,
    "code_width": 5,
    "num_codes": 10,
}
GUMBEL = {"quantizer": "gumbel"}


def layout(
    channels, multiples, num_res_blocks, attention_levels, latent_width, code_width, num_codes,
    quantizer="nearest",
):  # fmt: skip
    """Names and shapes of a taming-transformers state dict."""
    shapes = {}

    def convolution(name, inputs, outputs, side=3):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs, side, side), (outputs,)

    def norm(name, width):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    def block(name, inputs, outputs):
        norm(f"{name}.norm1", inputs)
        convolution(f"{name}.conv1", inputs, outputs)
        norm(f"{name}.norm2", outputs)
        convolution(f"{name}.conv2", outputs, outputs)
        if inputs != outputs:
            convolution(f"{name}.nin_shortcut", inputs, outputs, 1)

    def attention(name, width):
        norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            convolution(f"{name}.{part}", width, width, 1)

    def middle(name, width):
        block(f"{name}.block_1", width, width)
        attention(f"{name}.attn_1", width)
        block(f"{name}.block_2", width, width)

    widths, last = [channels * m for m in multiples], len(multiples) - 1
    convolution("encoder.conv_in", 3, channels)
    convolution("decoder.conv_in", latent_width, widths[last])
    for level, width in enumerate(widths):
        for j in range(num_res_blocks):
            inputs = width if j else widths[max(0, level - 1)]
            block(f"encoder.down.{level}.block.{j}", inputs, width)
        for j in range(num_res_blocks + 1):
            inputs = width if j else widths[min(last, level + 1)]
            block(f"decoder.up.{level}.block.{j}", inputs, width)
        if level in attention_levels:
            for j in range(num_res_blocks):
                attention(f"encoder.down.{level}.attn.{j}", width)
            for j in range(num_res_blocks + 1):
                attention(f"decoder.up.{level}.attn.{j}", width)
        if level < last:
            convolution(f"encoder.down.{level}.downsample.conv", width, width)
        if level > 0:
            convolution(f"decoder.up.{level}.upsample.conv", width, width)
    for side, width, outputs in (
        ("encoder", widths[last], latent_width),
        ("decoder", widths[0], 3),
    ):
        middle(f"{side}.mid", widths[last])
        norm(f"{side}.norm_out", width)
        convolution(f"{side}.conv_out", width, outputs)
    convolution("quant_conv", latent_width, code_width, 1)
    convolution("post_quant_conv", code_width, latent_width, 1)
    if quantizer == "gumbel":
        convolution("quantize.proj", code_width, num_codes, 1)
        shapes["quantize.embed.weight"] = (num_codes, code_width)
    else:
        shapes["quantize.embedding.weight"] = (num_codes, code_width)
    return shapes


def make_state(**change):
    generator = torch.Generator().manual_seed(0)
    shapes = layout(**(TINY | change))
    return {n: torch.randn(s, generator=generator) * 0.3 for n, s in shapes.items()}


@pytest.fixture
def save(tmp_path):
    def write(content, name="last.ckpt"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("arguments", "attention_levels", "grid"), [(GUMBEL_F8, (3,), 32), (F16, (4,), 16)]
)
def test_the_released_codecs_have_the_released_names_and_shapes(arguments, attention_levels, grid):
    with torch.device("meta"):
        codec = VQGAN(**arguments)
    names = ("channels", "multiples", "num_res_blocks", "latent_width", "code_width", "num_codes")
    released = layout(
        **{name: arguments[name] for name in names},
        attention_levels=attention_levels,
        quantizer=arguments["quantizer"],
    )
    assert taming_shapes(codec) == released
    assert codec.image_size // codec.factor == grid
    assert codec.num_codes == arguments["num_codes"]


@pytest.mark.parametrize("change", [{}, GUMBEL, {"attention_levels": (0, 2)}])
def test_a_checkpoint_is_read_whole(save, change):
    state = make_state(**change)
    codec = load_taming(save({"state_dict": state}), image_size=16)
    assert (codec.factor, codec.num_codes, codec.image_size) == (4, 10, 16)
    weight = codec.decoder.up[2].upsample.conv.weight
    assert torch.equal(weight, state["decoder.up.2.upsample.conv.weight"])
    codes = state["quantize.embed.weight" if change == GUMBEL else "quantize.embedding.weight"]
    assert torch.equal(codec.codebook.codes, codes)
    if change == GUMBEL:
        assert torch.equal(codec.codebook.proj.weight, state["quantize.proj.weight"])
    sides = [16 // 2**level for level in (TINY | change)["attention_levels"]]
    assert codec.arguments["attention_sizes"] == sides
    pictures = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    tokens = codec.encode(pictures)
    assert tokens.shape == (2, 16)
    bare = load_taming(save(state, "bare.pt"), image_size=16)
    assert torch.equal(bare.encode(pictures), tokens)
    assert torch.equal(bare.decode(tokens), codec.decode(tokens))


def test_attention_stays_at_its_level_for_other_sizes(save):
    codec = load_taming(save(make_state()), image_size=32)
    assert codec.arguments["attention_sizes"] == [8]
    with pytest.raises(ValueError, match=r"image_size must be a multiple of .* 4: got 30"):
        load_taming(save(make_state()), image_size=30)


def test_a_checkpoint_of_lightning_is_read_without_lightning(save, monkeypatch):
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = ModuleType(name)
    kind = type("ModelCheckpoint", (), {"__module__": name, "__qualname__": "ModelCheckpoint"})
    module.ModelCheckpoint = kind
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pytorch_lightning", ModuleType("pytorch_lightning"))
        patch.setitem(sys.modules, "pytorch_lightning.callbacks", ModuleType("callbacks"))
        patch.setitem(sys.modules, name, module)
        facts = {"epoch": 9, "callbacks": {kind: {"best_model_score": torch.tensor(0.5)}}}
        path = save(facts | {"state_dict": make_state()})
    assert load_taming(path, image_size=16).num_codes == 10


def test_tensors_of_the_training_losses_are_left_out_and_named(save, caplog):
    extra = {"loss.discriminator.main.0.weight": torch.zeros(2), "loss.logvar": torch.zeros(())}
    with caplog.at_level(logging.INFO):
        load_taming(save(make_state() | extra), image_size=16)
    assert "2 tensors of the training losses are left out" in caplog.text


def test_tokens_are_remapped_and_stay_so_on_disk(save, tmp_path):
    table = torch.tensor([0, 4, 1, 4, 2, 4, 3, 4, 4, 4])
    path = save(make_state(**GUMBEL))
    plain = load_taming(path, image_size=16)
    codec = load_taming(path, save(table, "map.pt"), image_size=16)
    assert codec.num_codes == 5
    pictures = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(codec.encode(pictures), table[plain.encode(pictures)])
    tokens = torch.arange(16).reshape(1, 16) % 5
    first = torch.tensor([0, 2, 4, 6, 1])
    assert torch.equal(codec.decode(tokens), plain.decode(first[tokens]))
    (tmp_path / "codec").mkdir()
    save_codec(codec, tmp_path / "codec", {})
    loaded = load_picture_codec(tmp_path / "codec")
    assert torch.equal(loaded.encode(pictures), codec.encode(pictures))
    assert torch.equal(loaded.decode(tokens), codec.decode(tokens))


def _without(name):
    state = make_state()
    del state[name]
    return state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (_without("decoder.mid.attn_1.q.bias"), r"has 1 missing \(decoder\.mid\.attn_1\.q\.bias\)"),
        (_without("encoder.conv_in.weight"), r"has no encoder\.conv_in\.weight; give such"),
        (_without("quantize.embedding.weight"), r"has no quantize\.embedding\.weight"),
        (make_state() | {"temb.weight": torch.zeros(1)}, r"has 1 unknown \(temb\.weight\)"),
        (make_state() | {"quant_conv.bias": torch.zeros(7)}, r"bias is \[7\], not \[5\]"),
        ({"encoders.0.weight": torch.zeros(1)}, r"has no encoder\.conv_in\.weight"),
        ({}, r"has no encoder\.conv_in\.weight"),
    ],
)  # fmt: skip
def test_another_architecture_is_refused_in_one_line(save, state, message):
    with pytest.raises(WeightsError, match=message) as caught:
        load_taming(save(state), image_size=16)
    assert str(caught.value).startswith("codec.image.weights must be a VQ-GAN of taming-trans")
    assert "\n" not in str(caught.value)


class _Bomb:
    def __reduce__(self):
        return (print, ("boom",))


def test_files_that_are_no_tensors_are_refused_in_one_line(save, tmp_path, capsys):
    files = {
        "missing.ckpt": (None, r"must name a file: got .*missing\.ckpt; give its path, or null"),
        "cut.ckpt": (save(make_state()).read_bytes()[:500], r"must be a whole file of tensors"),
        "empty.ckpt": (b"", r"must be a whole file of tensors"),
        "bomb.ckpt": (pickle.dumps(_Bomb(), protocol=2), r"must be a whole file of tensors"),
        "cut.safetensors": (b"\x10", r"must be a whole file of tensors"),
    }
    for name, (content, message) in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=message) as caught:
            load_taming(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert "boom" not in capsys.readouterr().out
    with pytest.raises(WeightsError, match=r"must hold names and tensors: .*; give a state dict"):
        load_taming(save({"state_dict": {"epoch": 3}}))


@pytest.mark.parametrize("suffix", [".pt", ".npy", ".safetensors"])
def test_a_table_is_read_from_any_of_three_formats(tmp_path, suffix):
    table, path = torch.tensor([2, 0, 2, 1, 0]), tmp_path / f"map{suffix}"
    match suffix:
        case ".pt":
            torch.save(table, path)
        case ".npy":
            np.save(path, table.numpy().astype(np.uint16))
        case _:
            save_file({"map": table.int()}, path)
    found = read_mapping(path, 5)
    assert found.dtype == torch.int64
    assert torch.equal(found, table)


@pytest.mark.parametrize("used", [974, 2887])
def test_tables_of_the_release_leave_the_tokens_of_the_paper(tmp_path, used):
    num_codes = {974: 16384, 2887: 8192}[used]
    order = torch.randperm(num_codes, generator=torch.Generator().manual_seed(0))
    table = torch.full((num_codes,), used - 1)
    table[order[: used - 1]] = torch.arange(used - 1)
    torch.save(table, tmp_path / "map.pt")
    assert int(read_mapping(tmp_path / "map.pt", num_codes).max()) + 1 == used


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([0, 1, 1], r"one entry for each of the 4 codes of .*weights: .* has 3; give the table"),
        ([0, 1, 3, 3], r"every token from 0 to its largest, 3: .* leaves out 1, the first 2; numb"),
        ([-1, 0, 1, 2], r"tokens of 0\.\.3: .* has -1\.\.2"),
        ([0, 1, 2, 4], r"tokens of 0\.\.3: .* has 0\.\.4"),
        ([0.0, 1.0, 2.0, 3.0], r"a list of integers, one for each code: .* holds float32 \[4\]"),
        ([True, False, True, True], r"list of integers.*holds bool \[4\]"),
        ([[0, 1], [2, 3]], r"list of integers.*holds int64 \[2, 2\]"),
        ([], r"list of integers.*holds float32 \[0\]"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".npy"])
def test_tables_that_break_a_rule_are_refused_in_one_line(tmp_path, table, message, suffix):
    path = tmp_path / f"map{suffix}"
    if suffix == ".pt":
        torch.save(torch.tensor(table), path)
    else:
        np.save(path, torch.tensor(table).numpy())
    with pytest.raises(WeightsError, match=message) as caught:
        read_mapping(path, 4)
    assert str(caught.value).startswith("codec.image.mapping must")
    assert "\n" not in str(caught.value)


def test_tables_that_are_no_arrays_are_refused(tmp_path, save):
    with pytest.raises(WeightsError, match=r"must name a file: got"):
        read_mapping(tmp_path / "missing.npy", 4)
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    with pytest.raises(WeightsError, match=r"must be a whole array of numbers"):
        read_mapping(tmp_path / "objects.npy", 4)
    with pytest.raises(WeightsError, match=r"must hold one tensor: .* holds list; save"):
        read_mapping(save([0, 1], "list.pt"), 2)
