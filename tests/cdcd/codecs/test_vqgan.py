import pytest
import torch

from cdcd.codecs.jukebox import JukeboxVQVAE
from cdcd.codecs.store import (
    CodecError,
    load_codec,
    load_picture_codec,
    read_facts,
    save_codec,
)
from cdcd.codecs.vqgan import (
    VQGAN,
    AttentionBlock,
    Downsample,
    ResidualBlock,
    group_norm,
    to_bytes,
    to_unit,
)

TINY = {
    "image_size": 16,
    "channels": 8,
    "multiples": (1, 2, 2),
    "attention_sizes": (4,),
    "latent_width": 6,
    "code_width": 5,
    "num_codes": 12,
}


def make(**arguments):
    torch.manual_seed(0)
    codec = VQGAN(**(TINY | arguments))
    for parameter in codec.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    codec.codebook.codes.normal_()
    return codec.eval()


def pictures(num=3, height=16, width=16, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (num, 3, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("quantizer", ["nearest", "gumbel"])
@pytest.mark.parametrize("multiples", [(1,), (1, 2), (2, 1, 1)])
def test_a_picture_of_any_whole_number_of_tokens_is_encoded(quantizer, multiples):
    codec = make(quantizer=quantizer, multiples=multiples, attention_sizes=())
    factor = 2 ** (len(multiples) - 1)
    assert codec.factor == factor
    tokens = codec.encode(pictures(2, 8, 12))
    assert (tokens.dtype, tokens.shape) == (torch.int64, (2, 96 // factor**2))
    assert tokens.min() >= 0
    assert tokens.max() < codec.num_codes
    decoded = codec.decode(codec.encode(pictures(2, 8, 8)).to(torch.int32))
    assert (decoded.dtype, decoded.shape) == (torch.uint8, (2, 3, 8, 8))


def test_a_token_is_the_nearest_code_of_its_place():
    codec = make()
    latents = codec.quant_conv(codec.encoder(to_unit(pictures())))  # b d h w
    apart = latents.permute(0, 2, 3, 1)[..., None, :] - codec.codebook.codes
    assert torch.equal(codec.encode(pictures()), apart.square().sum(-1).argmin(-1).flatten(1))


def test_a_gumbel_token_is_the_largest_logit_of_its_place():
    codec = make(quantizer="gumbel")
    logits = codec.codebook.proj(codec.quant_conv(codec.encoder(to_unit(pictures()))))
    assert torch.equal(codec.encode(pictures()), logits.argmax(1).flatten(1))


def test_tokens_lie_row_by_row():
    codec = make()
    tokens = torch.arange(32).reshape(2, 16) % 12
    grids = codec.codebook.codes[tokens.reshape(2, 4, 4)]  # b h w d
    decoded = codec.decoder(codec.post_quant_conv(grids.permute(0, 3, 1, 2)))
    assert torch.equal(codec.decode(tokens), to_bytes(decoded))
    assert codec.encode(pictures(1, 8, 16)).shape == codec.encode(pictures(1, 16, 8)).shape


def test_pictures_do_not_depend_on_their_company():
    codec = make()
    together = codec.encode(pictures())
    assert torch.equal(together[1:2], codec.encode(pictures()[1:2]))
    assert torch.equal(codec.decode(together)[2:], codec.decode(together[2:]))


def test_all_bytes_survive_the_change_of_scale():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(to_unit(values)), values)
    assert to_unit(values).aminmax() == (-1, 1)
    assert to_bytes(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_gradient_reaches_the_encoder_through_the_codebook():
    codec = make().train()
    output = codec(to_unit(pictures()))
    assert output.pictures.shape == (3, 3, 16, 16)
    assert output.tokens.shape == (3, 16)
    (output.pictures.square().mean() + output.commitment).backward()
    assert all(parameter.grad is not None for parameter in codec.parameters())
    assert codec.encoder.conv_in.weight.grad.abs().sum() > 0


def test_without_quantisation_the_decoder_reads_the_latents_and_the_codebook_rests():
    codec = make().train()
    x = to_unit(pictures())
    output = codec(x, is_quantized=False)
    expected = codec.decoder(codec.post_quant_conv(codec.quant_conv(codec.encoder(x))))
    assert torch.equal(output.pictures, expected)
    assert output.tokens.shape == (3, 0)
    assert float(output.commitment) == 0
    assert not codec.codebook.is_ready


def test_blocks_start_as_the_identity():
    x = torch.randn(2, 8, 4, 4)
    codec = VQGAN(**TINY)
    middle = VQGAN(**TINY).encoder.mid
    wide = torch.randn(2, 16, 4, 4)
    assert torch.equal(middle(wide), wide)
    assert torch.equal(codec.encoder.down[0].block[0](x), x)


def test_a_residual_block_changes_width_by_a_one_by_one():
    block, same = ResidualBlock(8, 16), ResidualBlock(8, 8)
    assert block.nin_shortcut.kernel_size == (1, 1)
    assert same.nin_shortcut is None
    assert block(torch.randn(1, 8, 5, 7)).shape == (1, 16, 5, 7)


def test_attention_weighs_all_places_by_the_softmax_of_scaled_products():
    block, x = AttentionBlock(8).double(), torch.randn(2, 8, 3, 4, dtype=torch.float64)
    q, k, v = (f(block.norm(x)).flatten(2) for f in (block.q, block.k, block.v))
    weights = torch.softmax(torch.einsum("bdi,bdj->bij", q, k) / 8**0.5, dim=2)
    found = torch.einsum("bij,bdj->bdi", weights, v).reshape(x.shape)
    torch.testing.assert_close(block(x), x + block.proj_out(found))


def test_halving_looks_right_and_below():
    down = Downsample(1)
    torch.nn.init.zeros_(down.conv.bias)
    down.conv.weight.data.zero_()
    down.conv.weight.data[0, 0, 0, 0] = 1  # the tap above and left of the three by three
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert torch.equal(down(x), x[:, :, ::2, ::2])


@pytest.mark.parametrize(
    ("width", "groups"), [(3, 1), (8, 2), (48, 12), (128, 32), (144, 24), (512, 32)]
)
def test_groups_are_those_of_the_release_at_its_widths(width, groups):
    assert group_norm(width).num_groups == groups


def test_a_token_stands_for_the_first_of_its_codes():
    codec = make(num_used=4)
    plain = make()
    state = codec.state_dict()
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    mapping = torch.tensor([3, 0, 0, 3, 1, 3, 2, 3, 1, 3, 3, 3])
    codec.remap(mapping)
    assert codec.num_codes == 4
    assert torch.equal(codec.encode(pictures()), mapping[plain.encode(pictures())])
    tokens = torch.arange(16).reshape(1, 16) % 4
    first = torch.tensor([1, 4, 6, 0])
    assert torch.equal(codec.decode(tokens), plain.decode(first[tokens]))
    # Used to full and back is the same token.
    assert torch.equal(codec.mapping[codec.full_codes], torch.arange(4))


@pytest.mark.parametrize("options", [{}, {"quantizer": "gumbel"}, {"num_used": 3}])
def test_a_saved_codec_is_the_same(tmp_path, options):
    codec = make(**options)
    if options.get("num_used"):
        codec.remap(torch.arange(12) % 3)
    save_codec(codec, tmp_path, {"seed": 1})
    loaded = load_picture_codec(tmp_path)
    tokens = codec.encode(pictures())
    assert torch.equal(loaded.encode(pictures()), tokens)
    assert torch.equal(loaded.decode(tokens), codec.decode(tokens))
    assert (loaded.factor, loaded.num_codes, loaded.image_size) == (4, codec.num_codes, 16)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    facts = read_facts(tmp_path)
    assert (facts["kind"], facts["facts"]) == ("vqgan", {"seed": 1})


def test_a_codec_of_the_other_kind_is_refused(tmp_path):
    (tmp_path / "music").mkdir()
    (tmp_path / "pictures").mkdir()
    save_codec(JukeboxVQVAE(groups=(3,), width=4, depth=1, num_codes=4), tmp_path / "music", {})
    save_codec(make(), tmp_path / "pictures", {})
    with pytest.raises(CodecError, match=r"music must hold a codec of pictures: got one of sound"):
        load_picture_codec(tmp_path / "music")
    with pytest.raises(CodecError, match=r"must hold a codec of sound: got one of pictures; name"):
        load_codec(tmp_path / "pictures")


def test_no_pictures_give_no_tokens():
    codec = make()
    assert codec.encode(pictures(0)).shape == (0, 16)
    assert codec.decode(torch.empty(0, 16, dtype=torch.int64)).shape == (0, 3, 16, 16)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            pictures(1, 16, 18),
            r"side must be a multiple of .* 4: got 18 pixels; use 16",
        ),
        (pictures(1, 1, 1), r"multiple of the codec's factor 4: got 1 pixels; use 4"),
        (pictures(1).float(), r"uint8 \[b, 3, h, w\] to be encoded: got float32 \[1, 3, 16, 16\]"),
        (pictures(1)[:, :1], r"got uint8 \[1, 1, 16, 16\]"),
        (pictures(1)[0], r"got uint8 \[3, 16, 16\]"),
    ],
)
def test_what_is_no_picture_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        make().encode(given)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(1, 8, dtype=torch.int64), r"square grid to be decoded: got 8 per picture"),
        (torch.full((1, 16), 12), r"must lie in 0\.\.11 to be decoded: got 12\.\.12; sample until"),
        (torch.full((1, 16), -1), r"got -1\.\.-1"),
    ],
)
def test_what_is_no_grid_of_tokens_is_refused(tokens, message):
    with pytest.raises(ValueError, match=message):
        make().decode(tokens)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_sizes": (5,)}, r"attention_sizes must be sides .*\[16, 8, 4\].*got \[5\]"),
        ({"image_size": 18}, r"image_size must be a multiple of the codec's factor 4: got 18"),
        ({"num_res_blocks": 0}, r"num_res_blocks at least 1: got \[1, 2, 2\] and 0"),
        ({"multiples": (1, 0)}, r"multiples must be positive"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        VQGAN(**(TINY | change))
