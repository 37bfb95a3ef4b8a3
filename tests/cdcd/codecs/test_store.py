import pytest
import torch

from cdcd.codecs.jukebox import JukeboxVQVAE
from cdcd.codecs.store import CodecError, load_codec, read_facts, save_codec


@pytest.fixture
def codec():
    torch.manual_seed(0)
    codec = JukeboxVQVAE(
        groups=(3, 1), width=4, max_width=8, depth=1, code_width=4, edge_width=3, num_codes=9
    )
    codec.codebook.codes.normal_()
    return codec


def test_roundtrip_is_bit_equal(codec, tmp_path):
    save_codec(codec, tmp_path, {"source": "trained"})
    loaded = load_codec(tmp_path)
    assert loaded.arguments == codec.arguments
    for name, tensor in codec.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    audio = torch.randn(2, 16 * 12)
    assert torch.equal(loaded.encode(audio), codec.encode(audio))
    tokens = torch.randint(0, 9, (2, 12))
    assert torch.equal(loaded.decode(tokens), codec.decode(tokens))


def test_loaded_codec_is_frozen_and_keeps_its_facts(codec, tmp_path):
    save_codec(codec, tmp_path, {"source": "trained"})
    loaded = load_codec(tmp_path)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert read_facts(tmp_path)["facts"] == {"source": "trained"}


def test_loaded_codec_may_be_trained_on_from_its_codes(codec, tmp_path):
    save_codec(codec, tmp_path, {})
    loaded = load_codec(tmp_path).train()
    before = loaded.codebook.codes.clone()
    loaded.codebook.restart_threshold = 0.0
    loaded(torch.randn(2, 16 * 12))
    assert (loaded.codebook.codes - before).abs().max() < 3  # moved, not drawn anew


@pytest.mark.parametrize("name", ["codec.safetensors", "codec.json"])
def test_missing_file(codec, tmp_path, name):
    save_codec(codec, tmp_path, {})
    (tmp_path / name).unlink()
    with pytest.raises(CodecError, match=f"{name} must exist: run the codec stage"):
        load_codec(tmp_path)


@pytest.mark.parametrize("name", ["codec.safetensors", "codec.json"])
def test_truncated_file(codec, tmp_path, name):
    save_codec(codec, tmp_path, {})
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(CodecError, match="run the codec stage again") as caught:
        load_codec(tmp_path)
    assert "\n" not in str(caught.value)


def test_description_of_another_codec(codec, tmp_path):
    save_codec(codec, tmp_path, {})
    path = tmp_path / "codec.json"
    path.write_text(path.read_text().replace('"num_codes": 9', '"num_codes": 8'))
    with pytest.raises(CodecError, match="do not fit its description"):
        load_codec(tmp_path)
