"""The released layout is rebuilt here from nested Sequentials, independently of the loader."""

import pytest
import torch
from torch import nn

from cdcd.codecs.openai import WeightsError, load_released, released_shapes, top_level_names
from kernels.nearest_code import nearest_code

HALVINGS, MULTIPLIERS = (3, 2, 2), (2, 1, 1)


class Residual(nn.Module):
    def __init__(self, width, dilation):
        super().__init__()
        wide = nn.Conv1d(width, width, 3, 1, dilation, dilation)
        self.model = nn.Sequential(nn.ReLU(), wide, nn.ReLU(), nn.Conv1d(width, width, 1))

    def forward(self, x):
        return x + self.model(x)


class Named(nn.Module):
    """Modules under given names, applied by whoever holds them."""

    def __init__(self, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


class Model(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.model = nn.Sequential(*layers)

    def forward(self, x):
        return self.model(x)


def residuals(width, depth, is_reversed):
    dilations = [3**i for i in range(depth)]
    return Model(*[Residual(width, d) for d in (dilations[::-1] if is_reversed else dilations)])


def encoder_block(width_in, width, depth, halvings):
    downs = [
        nn.Sequential(
            nn.Conv1d(width if i else width_in, width, 4, 2, 1), residuals(width, depth, False)
        )
        for i in range(halvings)
    ]
    return Model(*downs, nn.Conv1d(width, 64, 3, 1, 1))


def decoder_block(width, depth, halvings):
    ups = [
        nn.Sequential(
            residuals(width, depth, True),
            nn.ConvTranspose1d(width, width if i < halvings - 1 else 64, 4, 2, 1),
        )
        for i in range(halvings)
    ]
    return Model(nn.Conv1d(64, width, 3, 1, 1), *ups)


class Released(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoders, self.decoders = nn.ModuleList(), nn.ModuleList()
        for level, multiplier in enumerate(MULTIPLIERS):
            width, depth, cut = 32 * multiplier, 4 * multiplier, HALVINGS[: level + 1]
            encoder = [
                encoder_block(64 if block else 1, width, depth, halvings)
                for block, halvings in enumerate(cut)
            ]
            decoder = [decoder_block(width, depth, halvings) for halvings in cut]
            self.encoders.append(Named(level_blocks=nn.ModuleList(encoder)))
            self.decoders.append(
                Named(level_blocks=nn.ModuleList(decoder), out=nn.Conv1d(64, 1, 3, 1, 1))
            )
        blocks = nn.ModuleList([nn.Module() for _ in MULTIPLIERS])
        for block in blocks:
            block.register_buffer("k", torch.randn(2048, 64) * 0.05)
        self.bottleneck = Named(level_blocks=blocks)

    def outputs(self, audio):
        x = audio[:, None]
        for block in self.encoders[2].level_blocks:
            x = block(x)
        return x.transpose(1, 2).reshape(-1, 64)

    def encode(self, audio):
        rows = self.outputs(audio)
        return nearest_code(rows, self.bottleneck.level_blocks[2].k).codes.reshape(len(audio), -1)

    def decode(self, tokens):
        x = self.bottleneck.level_blocks[2].k[tokens].transpose(1, 2)
        for block in reversed(self.decoders[2].level_blocks):
            x = block(x)
        return self.decoders[2].out(x)[:, 0]


@pytest.fixture(scope="module")
def released():
    torch.manual_seed(0)
    model = Released().eval().requires_grad_(False)
    # Codes where the encoder's outputs lie, so that many of them are used.
    rows = model.outputs(torch.randn(16, 128 * 128))
    model.bottleneck.level_blocks[2].k.copy_(rows[torch.randperm(len(rows))])
    return model


def save(path, state, **others):
    torch.save({"model": state, "step": 3, "opt": None, "hps": {"sr": 44100}} | others, path)
    return path


def test_layout_is_the_released_one(released):
    assert {name: tuple(t.shape) for name, t in released.state_dict().items()} == released_shapes()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("encoders.0.level_blocks.0.model.0.0.weight", (64, 1, 4)),
        ("encoders.0.level_blocks.0.model.2.1.model.7.model.3.bias", (64,)),
        ("encoders.2.level_blocks.0.model.0.0.weight", (32, 1, 4)),
        ("encoders.2.level_blocks.1.model.0.0.weight", (32, 64, 4)),
        ("encoders.2.level_blocks.2.model.1.1.model.3.model.1.weight", (32, 32, 3)),
        ("encoders.2.level_blocks.2.model.2.weight", (64, 32, 3)),
        ("decoders.2.level_blocks.2.model.0.weight", (32, 64, 3)),
        ("decoders.2.level_blocks.0.model.3.1.weight", (32, 64, 4)),
        ("decoders.2.level_blocks.0.model.3.1.bias", (64,)),
        ("decoders.2.out.weight", (1, 64, 3)),
        ("bottleneck.level_blocks.2.k", (2048, 64)),
    ],
)
def test_known_names_and_shapes(name, shape):
    assert released_shapes()[name] == shape


def test_loaded_codec_computes_what_the_released_one_does(released, tmp_path):
    codec = load_released(save(tmp_path / "vqvae.pth.tar", released.state_dict()))
    audio = torch.randn(2, 128 * 40)
    tokens = released.encode(audio)
    assert len(tokens.unique()) > 5
    assert (codec.encode(audio) == tokens).float().mean() > 0.99
    torch.testing.assert_close(codec.decode(tokens), released.decode(tokens), rtol=0, atol=1e-6)


def test_every_tensor_of_the_codec_has_one_source(released):
    from cdcd.codecs.jukebox import JukeboxVQVAE

    names = top_level_names()
    assert names.keys() == JukeboxVQVAE().state_dict().keys()
    assert len(set(names.values())) == len(names)
    top = {n for n in released.state_dict() if n.split(".")[:2][-1] == "2" or ".2.k" in n}
    assert set(names.values()) == top


def test_prefix_of_a_distributed_run_is_dropped(released, tmp_path):
    state = {f"module.{name}": tensor for name, tensor in released.state_dict().items()}
    codec = load_released(save(tmp_path / "v.pth.tar", state))
    assert torch.equal(codec.codebook.codes, released.bottleneck.level_blocks[2].k)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("decoders.2.out.bias"), r"1 missing \(decoders\.2\.out\.bias\)"),
        (lambda s: s.update(extra=torch.zeros(1)), r"1 unexpected \(extra\)"),
        (
            lambda s: s.update({"bottleneck.level_blocks.2.k": torch.zeros(1024, 64)}),
            r"1 of another shape \(bottleneck\.level_blocks\.2\.k is \[1024, 64\], not \[2048,",
        ),
        (lambda s: s.clear(), "missing"),
    ],
)
def test_any_difference_is_one_clear_error(released, tmp_path, change, message):
    state = dict(released.state_dict())
    change(state)
    with pytest.raises(WeightsError, match=message) as caught:
        load_released(save(tmp_path / "v.pth.tar", state))
    assert "\n" not in str(caught.value)


def test_files_of_another_kind_are_one_clear_error(tmp_path):
    with pytest.raises(WeightsError, match="must name a file"):
        load_released(tmp_path / "absent.pth.tar")
    for content in (b"", b"not a checkpoint", b"PK\x03\x04 cut"):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(WeightsError, match="whole PyTorch file") as caught:
            load_released(tmp_path / "bad")
        assert "\n" not in str(caught.value)
    torch.save([1, 2], tmp_path / "list")
    with pytest.raises(WeightsError, match="under the key 'model'"):
        load_released(tmp_path / "list")


class Danger:
    def __reduce__(self):
        import os

        return os.system, ("echo unpickled > danger",)


def test_a_file_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"k": Danger()}}, tmp_path / "bad")
    with pytest.raises(WeightsError, match="whole PyTorch file"):
        load_released(tmp_path / "bad")
    assert not (tmp_path / "danger").exists()
