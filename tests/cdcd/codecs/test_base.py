import pytest
import torch

from cdcd.codecs.base import decode_batches, decode_stream
from cdcd.codecs.jukebox import JukeboxVQVAE


def make_codec(**changes):
    torch.manual_seed(0)
    arguments = {"groups": (2, 1), "width": 4, "depth": 2, "code_width": 4, "num_codes": 16}
    codec = JukeboxVQVAE(**(arguments | changes)).eval().requires_grad_(False)
    codec.codebook.codes.normal_()
    return codec


def split_tokens(tokens, sizes):
    start = 0
    for size in sizes:
        yield tokens[..., start : start + size]
        start += size
    assert start == tokens.shape[-1]


@pytest.mark.parametrize("block", [1, 20, 10_000])
@pytest.mark.parametrize("sizes", [[200], [1] * 200, [3, 0, 90, 107], [150, 50]])
def test_stream_equals_one_decode(sizes, block):
    codec = make_codec()
    tokens = torch.randint(0, 16, (2, 200))
    pieces = list(decode_stream(codec, split_tokens(tokens, sizes), block_tokens=block))
    torch.testing.assert_close(torch.cat(pieces, 1), codec.decode(tokens), rtol=0, atol=1e-5)


def test_stream_of_flat_chunks_and_of_fewer_tokens_than_context():
    codec = make_codec()
    tokens = torch.randint(0, 16, (5,))
    assert codec.context_tokens > 5
    (piece,) = decode_stream(codec, split_tokens(tokens, [2, 3]), block_tokens=1)
    torch.testing.assert_close(piece, codec.decode(tokens[None])[0], rtol=0, atol=1e-5)


def test_stream_of_nothing_is_nothing():
    assert list(decode_stream(make_codec(), [])) == []


def test_stream_never_decodes_more_than_block_and_context():
    codec = make_codec()
    longest = 0
    decode = codec.decode

    def watched(tokens):
        nonlocal longest
        longest = max(longest, tokens.shape[1])
        return decode(tokens)

    codec.decode = watched
    tokens = torch.randint(0, 16, (1, 3000))
    list(decode_stream(codec, split_tokens(tokens, [10] * 300), block_tokens=64))
    assert longest <= 64 + 10 + 2 * codec.context_tokens


def test_batches_join_to_the_whole():
    codec = make_codec()
    tokens = torch.randint(0, 16, (5, 12))
    pieces = list(decode_batches(codec, tokens, 2))
    assert [len(piece) for piece in pieces] == [2, 2, 1]
    torch.testing.assert_close(torch.cat(pieces), codec.decode(tokens), rtol=0, atol=1e-5)
