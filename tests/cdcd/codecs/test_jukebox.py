import pytest
import torch

from cdcd.codecs.jukebox import JukeboxVQVAE, ResidualBlock, groups_of_hop
from kernels.nearest_code import nearest_code


def make_codec(**changes):
    torch.manual_seed(0)
    arguments = {"groups": (3,), "width": 4, "depth": 2, "code_width": 4, "num_codes": 16}
    codec = JukeboxVQVAE(**(arguments | changes)).eval()
    codec.codebook.codes.normal_()
    return codec


@pytest.fixture(scope="module")
def released():
    return JukeboxVQVAE().eval()


@pytest.mark.parametrize(("seconds", "num_tokens"), [(2, 344), (6, 1033)])
def test_token_counts_at_paper_scale(released, seconds, num_tokens):
    tokens = released.encode(torch.zeros(1, 22050 * seconds))
    assert tokens.shape == (1, num_tokens)


def test_paper_scale_decodes_whole_tokens(released):
    assert (released.hop, released.num_codes) == (128, 2048)
    assert released.decode(torch.zeros(1, 344, dtype=torch.int64)).shape == (1, 44032)


@pytest.mark.parametrize(
    ("hop", "groups"),
    [
        (8, (3,)),
        (32, (3, 2)),
        (64, (3, 3)),
        (128, (3, 2, 2)),
        (256, (3, 2, 3)),
        (512, (3, 2, 2, 2)),
    ],
)
def test_groups_multiply_to_the_hop(hop, groups):
    assert groups_of_hop(hop) == groups
    codec = make_codec(groups=groups)
    assert codec.hop == hop
    tokens = codec.encode(torch.randn(2, 5 * hop + hop - 1))
    assert tokens.shape == (2, 5)
    assert codec.decode(tokens).shape == (2, 5 * hop)


@pytest.mark.parametrize("hop", [100, 4, 0])
def test_a_hop_that_is_no_power_of_two_is_refused(hop):
    with pytest.raises(ValueError, match=f"power of two of at least 8: got {hop}"):
        groups_of_hop(hop)


def test_residual_block_formula():
    block = ResidualBlock(3, dilation=9)
    x = torch.randn(2, 3, 40)
    wide = torch.nn.functional.conv1d(
        x.clamp_min(0), block.wide.weight, block.wide.bias, padding=9, dilation=9
    )
    expected = x + torch.einsum("oi,bil->bol", block.point.weight[..., 0], wide.clamp_min(0))
    torch.testing.assert_close(block(x), expected + block.point.bias[:, None])


def test_dilation_grows_in_the_encoder_and_shrinks_in_the_decoder(released):
    down, up = released.encoder[0], released.decoder[1]
    assert [block.wide.dilation[0] for block in down.stack] == [1, 3, 9, 27]
    assert [block.wide.dilation[0] for block in up.stack] == [27, 9, 3, 1]


def test_widths_double_and_plain_rates_have_no_blocks():
    codec = make_codec(groups=(4,), width=4, max_width=12, num_plain=2, edge_width=5)
    downs = list(codec.encoder)[:4]
    assert [down.conv.out_channels for down in downs] == [4, 8, 12, 12]
    assert [len(down.stack) for down in downs] == [0, 0, 2, 2]
    assert codec.out.in_channels == 5


@pytest.mark.parametrize(
    "changes",
    [{}, {"depth": 3, "groups": (2, 2)}, {"depth": 0}, {"num_plain": 2, "max_width": 8}],
)
def test_context_is_the_exact_reach_of_the_decoder(changes):
    codec = make_codec(**changes)
    context = codec.context_tokens
    middle = context + 2
    vectors = torch.randn(1, 4, 2 * middle + 1, dtype=torch.float64, requires_grad=True)
    codec = codec.double()
    # A linear copy of the decoder with positive weights reaches all that the real one could.
    for parameter in codec.parameters():
        parameter.data.abs_().add_(0.01)
    sound = codec.out(codec.decoder(vectors.abs()))
    own = sound[0, 0, middle * codec.hop : (middle + 1) * codec.hop].sum()
    (gradient,) = torch.autograd.grad(own, vectors)
    reached = gradient.abs().sum(dim=(0, 1)).nonzero().flatten() - middle
    assert max(-int(reached.min()), int(reached.max())) == context


def test_encode_is_the_nearest_code_of_the_encoder():
    codec = make_codec()
    audio = torch.randn(2, 80)
    vectors = codec.encoder(audio[:, None]).transpose(1, 2).reshape(20, 4)
    expected = nearest_code(vectors, codec.codebook.codes).codes.reshape(2, 10)
    assert torch.equal(codec.encode(audio), expected)


def test_forward_equals_encode_then_decode_in_evaluation():
    codec = make_codec()
    audio = torch.randn(2, 80)
    output = codec(audio)
    assert torch.equal(output.tokens, codec.encode(audio))
    torch.testing.assert_close(output.audio, codec.decode(output.tokens))


def test_every_parameter_receives_gradient():
    codec = make_codec().train()
    for module in codec.modules():
        if isinstance(module, ResidualBlock):  # they start as the identity
            torch.nn.init.normal_(module.point.weight)
    output = codec(torch.randn(2, 160))
    (output.audio.square().mean() + output.commitment).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in codec.parameters())


def test_a_mask_left_among_the_tokens_is_refused():
    with pytest.raises(ValueError, match=r"0\.\.15 to be decoded: got 0\.\.16"):
        make_codec().decode(torch.tensor([[0, 16]]))


def test_nothing_in_gives_nothing_out():
    codec = make_codec()
    assert codec.encode(torch.randn(2, 7)).shape == (2, 0)
    assert codec.decode(torch.empty(2, 0, dtype=torch.int32)).shape == (2, 0)


def test_a_fresh_codec_keeps_the_signals_size():
    torch.manual_seed(0)
    codec = JukeboxVQVAE(groups=(8,), width=8, max_width=32, depth=2, num_plain=2)
    x = torch.randn(4, 1, 8192)
    for layers in (codec.encoder, codec.decoder):
        sizes = []
        for layer in layers:
            x = layer(x)
            sizes.append(float(x.detach().std()))
        assert min(sizes) > 0.3
        assert max(sizes) < 3
