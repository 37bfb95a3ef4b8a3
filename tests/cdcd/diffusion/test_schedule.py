import pytest
import torch

from cdcd.diffusion.schedule import make_schedule

NAMES = ["absorbing_uniform", "alpha1", "official"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("K", [3, 2048])
def test_probabilities_sum_to_one(name, K):
    a, b, c, A, B, C = make_schedule(name, K, 80).tables
    share = K + 1 if name == "official" else K  # D17: the released code divides by one more
    torch.testing.assert_close(a + share * b + c, torch.ones_like(a), atol=1e-12, rtol=0)
    torch.testing.assert_close(A + share * B + C, torch.ones_like(A), atol=1e-12, rtol=0)
    for x in (a, b, c, A, B, C):
        assert float(x.min()) >= 0


@pytest.mark.parametrize("name", ["absorbing_uniform", "alpha1"])
def test_cumulative_is_the_product_of_steps(name):
    a, b, c, A, B, C = make_schedule(name, 7, 20).tables
    K = 7
    for t in range(1, 21):
        torch.testing.assert_close(A[t], A[t - 1] * a[t])
        torch.testing.assert_close(C[t], C[t - 1] + (1 - C[t - 1]) * c[t])
        kept = (A[t - 1] + K * B[t - 1]) * b[t] + a[t] * B[t - 1]
        torch.testing.assert_close(B[t], kept, atol=1e-12, rtol=1e-6)


def test_the_end_forgets_the_start():
    A, B = make_schedule("absorbing_uniform", 512, 50, 0.1).tables[3:5, -1]
    assert float(A) < 1e-5
    assert abs(float(512 * B) - 0.1) < 1e-4
    assert float(make_schedule("alpha1", 512, 50).tables[5, -1]) == pytest.approx(0.99999)


def test_official_divides_by_one_more():
    ours, theirs = make_schedule("alpha1", 50, 10), make_schedule("official", 50, 10)
    torch.testing.assert_close(theirs.tables[1] * 51, ours.tables[1] * 50)


def test_too_few_steps():
    with pytest.raises(ValueError, match="num_steps must be at least 2"):
        make_schedule("alpha1", 5, 1)


@pytest.mark.parametrize("t", [0, 11, -1])
def test_a_step_out_of_range_is_refused(t):
    schedule = make_schedule("alpha1", 5, 10)
    with pytest.raises(ValueError, match=rf"t must lie in 1\.\.10: got {t}"):
        schedule.coefficients(torch.tensor([3, t]))
