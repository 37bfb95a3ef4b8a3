"""Two processes train what one trains: the same losses and weights up to the order of summation."""

from __future__ import annotations

import json
import socket

import pytest
import torch
from safetensors.torch import load_file

from cdcd.diffusion.negatives import shuffled_chunks, shuffled_patches
from cdcd.diffusion.process import noise
from cdcd.diffusion.schedule import make_schedule
from cdcd.training.ranks import ALONE, Ranks, joined
from tests.cdcd.training import tiny, two_ranks


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """What two processes left; one run of them for all tests here."""
    folder = tmp_path_factory.mktemp("ranks")
    tiny.write_caches(folder / "caches")
    params = two_ranks.params_of("importance")
    tiny.run(folder / "caches", folder / "one-two", params, stop_after=7)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=two_ranks.play, args=(rank, port, folder))
        for rank in range(two_ranks.SIZE)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 9]
    return folder


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def assert_alike(ours, theirs, **tolerance):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(
            value, theirs[name], msg=lambda m, n=name: f"{n}: {m}", **tolerance
        )


@pytest.mark.parametrize("case", two_ranks.CASES)
def test_losses_and_weights_are_those_of_one_process(played, tmp_path, case):
    tracker = tiny.Losses()
    tiny.run(played / "caches", tmp_path, two_ranks.params_of(case), tracker)
    got = torch.tensor(json.loads((played / case / "losses.json").read_text()))
    coarse = 100 if case == "bfloat16" else 1
    torch.testing.assert_close(got, torch.tensor(tracker.totals), rtol=1e-5 * coarse, atol=0)
    tolerance = {"rtol": 1e-5 * coarse, "atol": 1e-5 * coarse}
    assert_alike(weights(played / case), weights(tmp_path), **tolerance)


def test_any_number_of_processes_goes_on_from_a_checkpoint(played):
    params = two_ranks.params_of("importance")
    tiny.run(played / "caches", played / "two-one", params)
    for case in ("one-two", "two-one"):
        assert_alike(weights(played / case), weights(played / "importance"), rtol=1e-5, atol=1e-5)
        assert not (played / case / "checkpoint").exists()


def test_gradients_are_averaged_and_missing_where_all_miss_them(played):
    found = [json.loads((played / f"differ-{rank}.json").read_text()) for rank in range(2)]
    for one in found:
        assert one["p"] == [1.5, 3.0]
        assert one["q"] == [2.0, 3.0]  # zero where it is missing
    assert found[0]["random"] != found[1]["random"]


def test_every_process_refuses_the_same(played):
    for rank in range(2):
        unequal, infinite = json.loads((played / f"refused-{rank}.json").read_text())
        assert unequal == (
            "train.batch_size must be a multiple of the number of training processes: got 7 for 2; "
            "use 6 or 8, or another CDCD_TRAIN_PROCESSES"
        )
        assert "the loss must stay finite" in infinite
        assert "\n" not in infinite


def test_a_lost_process_is_one_line_at_once(played):
    lost = json.loads((played / "lost.json").read_text())
    assert "must all stay alive: one ended" in lost["line"]
    assert "run again to go on from the last checkpoint" in lost["line"]
    assert "\n" not in lost["line"]
    assert lost["seconds"] < 60


def test_alone_nothing_is_shared(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with joined() as ranks:
        assert ranks is ALONE
    assert ALONE.share(7, "x") is None
    x = torch.rand(3)
    assert ALONE.average(x) is x
    assert ALONE.gather(x) is x
    state = torch.get_rng_state()
    ALONE.seed_dropout(1, 1)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("size", [2, 3])
def test_shares_are_disjoint_and_draw_what_the_whole_batch_draws(size):
    b, n = 6, 3
    shares = [Ranks(rank, size).share(b, "b") for rank in range(size)]
    assert [i for s in shares for i in s.ids(torch.device("cpu")).tolist()] == list(range(b))
    z_0 = torch.randint(9, (b, 16))
    schedule, t = make_schedule("absorbing_uniform", 9, 5), torch.arange(b) % 5 + 1

    def draw(z, t, share):
        generator = torch.Generator().manual_seed(7)
        chunks = shuffled_chunks(z, n, 4, generator, share)
        patches = shuffled_patches(z, n, (4, 4), 4, generator, share)
        noised = noise(z, t, schedule, generator, chunks, share)
        return chunks, patches, noised.z_t, noised.negatives, generator.get_state()

    whole = draw(z_0, t, None)
    parts = [draw(share.cut(z_0), share.cut(t), share) for share in shares]
    for index in range(4):
        assert torch.equal(torch.cat([part[index] for part in parts]), whole[index])
    # All are left at the same place, so that the next step agrees as well.
    assert all(torch.equal(part[4], whole[4]) for part in parts)
