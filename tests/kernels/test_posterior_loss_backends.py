"""The reference and the Triton program (interpreted without a GPU) against float64 autograd."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from kernels import baselines
from kernels.inputs import Problem, problem
from kernels.linear_posterior_loss import linear_posterior_loss
from kernels.posterior_loss import posterior_loss, weighted_posterior_loss

ROOT = Path(__file__).resolve().parents[2]
BACKENDS = ["reference", "triton"] if sys.platform == "linux" else ["reference"]
FEW = [(7, 0), (100, 1), (100, 10), (100, 40), (100, 1000), (2886, 3), (2887, 3), (16384, 2)]


def tensors(terms):
    return [x for x in terms if x is not None]


def upstream(terms, seed=1):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(x.shape, generator=g, dtype=torch.float64).to(x) for x in tensors(terms)]


def truth(x: Problem):
    """Values and gradient in float64 by autograd of the plain expression, on the same numbers."""
    logits = x.logits.double().detach().requires_grad_()
    terms = tensors(baselines.closed_form(logits, x.z_t, x.z_0, x.q, x.negatives))
    (gradient,) = torch.autograd.grad(terms, logits, upstream(terms))
    return [t.detach() for t in terms], gradient


def ours(x: Problem):
    logits = x.logits.detach().requires_grad_()
    terms = tensors(posterior_loss(logits, x.z_t, x.z_0, x.q, x.negatives))
    (gradient,) = torch.autograd.grad(terms, logits, upstream(terms))
    return [t.detach() for t in terms], gradient


def check(x: Problem, value=2e-5, slope=2e-5):
    (values, gradient), (expected, expected_gradient) = ours(x), truth(x)
    for got, want in zip(values, expected, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=value, atol=value * 10)
    assert gradient.dtype == x.logits.dtype
    atol = slope * max(float(expected_gradient.abs().max()), 1.0)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=slope, atol=atol)


@pytest.mark.parametrize(("K", "n"), FEW)
def test_values_and_gradient(backend, device, K, n):
    check(problem(4 if K < 1000 else 2, 3, K, n, device=device))


@pytest.mark.parametrize("mass", [0.0, 1e-6, 0.9])
def test_uniform_mass_down_to_none(backend, device, mass):
    check(problem(5, 6, 50, 5, uniform_mass=mass, device=device))


@pytest.mark.parametrize(("dtype", "eps"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-10)])
def test_half_precision_logits_are_computed_in_float32(backend, device, dtype, eps):
    # Values see only the rounding of float32; the gradient is rounded once, to the logits' type.
    check(problem(4, 4, 100, 10, dtype=dtype, device=device), slope=eps)


@pytest.mark.parametrize("K", [2, 3])
def test_the_smallest_codebooks(backend, device, K):
    check(problem(5, 8, K, 4, device=device))


@pytest.mark.parametrize("kind", ["all", "none"])
def test_all_rows_masked_and_none(backend, device, kind):
    x = problem(4, 5, 30, 4, device=device)
    z_t = torch.full_like(x.z_t, 30) if kind == "all" else x.z_0
    check(Problem(x.logits, z_t, x.z_0, x.q, x.negatives))


def test_huge_logits_stay_finite_and_floored(backend, device):
    x = problem(4, 6, 60, 6, scale=1e4, device=device)
    values, gradient = ours(x)
    assert all(torch.isfinite(v).all() for v in values)
    assert torch.isfinite(gradient).all()
    assert float(values[1].max()) <= 70.0
    for got, want in zip(values, truth(x)[0], strict=True):
        torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=2e-4)


def test_every_output_is_written(backend, device):
    """`torch.empty` is filled with NaN in these tests: what is not stored shows."""
    values, gradient = ours(problem(3, 5, 33, 40, device=device))
    assert all(torch.isfinite(v).all() for v in [*values, gradient])


def test_empty_batch(backend, device):
    for b, l in ((0, 4), (3, 0)):
        values, gradient = ours(problem(b, l, 9, 2, device=device))
        assert [tuple(v.shape) for v in values] == [(b, l), (b, l), (b, 2, l), (b, 2, l)]
        assert gradient.shape == (b, l, 9)


def test_strided_inputs(backend, device):
    x = problem(4, 5, 40, 6, device=device)
    logits = x.logits.transpose(1, 2).contiguous().transpose(1, 2)
    sliced = torch.cat([x.logits, x.logits], dim=1)[:, ::2][:, :5]
    negatives = x.negatives.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    expanded = x.negatives[:, :1].expand(4, 6, 5)
    for one, many in ((logits, negatives), (sliced, expanded)):
        check(Problem(one, x.z_t.t().contiguous().t(), x.z_0, x.q, many))


def test_addresses_beyond_32_bits(backend, tmp_path):
    """The second sample starts 2^31 elements after the first; a sparse file holds them."""
    x = problem(2, 1, 16, 3, dtype=torch.float16)
    stride = 2**31 + 16
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2 * (stride + 64))
    store = np.memmap(tmp_path / "sparse", np.float16, mode="r+", shape=(stride + 64,))
    far = torch.from_numpy(store).as_strided((2, 1, 16), (stride, 16, 1))
    far.copy_(x.logits)
    with torch.no_grad():
        got = posterior_loss(far, x.z_t, x.z_0, x.q, x.negatives)
        want = posterior_loss(x.logits, x.z_t, x.z_0, x.q, x.negatives)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("n", [3, 40])
def test_the_weighted_sum_is_the_sum_of_weighted_terms(backend, device, n):
    x = problem(4, 5, 30, n, device=device)
    g = torch.Generator().manual_seed(3)
    shapes = {"kl": (4, 1), "aux": (4, 5), "neg_step": (4, n, 5), "neg_sample": (4, 1, 1)}
    weights = {k: torch.randn(s, generator=g).to(x.logits) for k, s in shapes.items()}
    out = torch.randn(4, 5, generator=g).to(x.logits)
    logits = x.logits.clone().requires_grad_()
    loss, terms = weighted_posterior_loss(logits, x.z_t, x.z_0, x.q, x.negatives, **weights)
    assert not terms.kl.requires_grad
    (gradient,) = torch.autograd.grad(loss, logits, out)
    plain = posterior_loss(logits, x.z_t, x.z_0, x.q, x.negatives)
    want = sum(
        (w * t).sum(1) if t.ndim == 3 else w * t
        for w, t in zip(weights.values(), plain, strict=True)
    )
    torch.testing.assert_close(loss, want, rtol=1e-5, atol=1e-4)
    (expected,) = torch.autograd.grad(want, logits, out)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


def test_a_second_backward_pass_is_refused_rather_than_wrong(backend):
    x = problem(2, 3, 8, 0)
    logits = x.logits.requires_grad_()
    loss, _ = weighted_posterior_loss(logits, x.z_t, x.z_0, x.q, kl=torch.ones(()))
    loss.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.sum().backward()


def test_gradcheck(backend):
    x = problem(3, 2, 5, 3, dtype=torch.float64)
    x = Problem(x.logits.requires_grad_(), x.z_t, x.z_0, x.q, x.negatives)

    def weighted(logits):
        # Random weights: every entry of every term's Jacobian shows, in one backward pass.
        terms = posterior_loss(logits, x.z_t, x.z_0, x.q, x.negatives)
        return sum((w * v).sum() for w, v in zip(upstream(terms), terms, strict=True))

    assert torch.autograd.gradcheck(weighted, (x.logits,))


class Head(torch.nn.Module):
    def __init__(self, K):
        super().__init__()
        self.layer = torch.nn.Linear(6, K)

    def forward(self, hidden, x: Problem):
        terms = posterior_loss(self.layer(hidden), x.z_t, x.z_0, x.q, x.negatives)
        return terms.kl.mean() - 0.1 * terms.neg_step.mean()


def head_and_input(K=20):
    torch.manual_seed(0)
    return Head(K), torch.randn(3, 4, 6), problem(3, 4, K, 3)


def gradient_of(module, loss):
    module.zero_grad()
    loss.backward()
    return module.layer.weight.grad.clone()


def test_compiled_model(backend):
    module, hidden, x = head_and_input()
    want = gradient_of(module, module(hidden, x))
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(gradient_of(module, compiled(hidden, x)), want)


def test_checkpointed_model(backend):
    module, hidden, x = head_and_input()
    want = gradient_of(module, module(hidden, x))
    loss = checkpoint(module, hidden, x, use_reentrant=False)
    torch.testing.assert_close(gradient_of(module, loss), want)


def test_autocast_model(backend):
    module, hidden, x = head_and_input()
    want = gradient_of(module, module(hidden, x))
    with torch.autocast("cpu", torch.bfloat16):
        loss = module(hidden, x)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(gradient_of(module, loss), want, rtol=0.05, atol=0.02)


def compare_distributed(store):
    """Run in a process of its own: one rank under DDP gives the gradient of the plain module."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=0, world_size=1, timeout=timedelta(seconds=60)
    )
    for backend in BACKENDS:
        os.environ["CDCD_KERNELS"] = backend
        module, hidden, x = head_and_input()
        want = gradient_of(module, module(hidden, x))
        wrapped = torch.nn.parallel.DistributedDataParallel(module)
        torch.testing.assert_close(gradient_of(module, wrapped(hidden, x)), want)
    torch.distributed.destroy_process_group()


def test_distributed_model(tmp_path):
    # Gloo looks for the address of the host's name and waits half an hour where it has none.
    store = str(tmp_path / "store")
    code = f"import runpy; runpy.run_path({__file__!r})['compare_distributed']({store!r})"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=180)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("chunk_bytes", [1, 5000, 1 << 26])
def test_linear_layer_and_loss_in_chunks(backend, chunk_bytes, has_bias):
    x = problem(3, 7, 20, 4)
    torch.manual_seed(0)
    leaves = [torch.randn(3, 7, 6), torch.randn(20, 6), torch.randn(20)][: 2 + has_bias]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    layer = leaves if has_bias else [*leaves, None]
    whole = posterior_loss(torch.nn.functional.linear(*layer), x.z_t, x.z_0, x.q, x.negatives)
    parts = linear_posterior_loss(*layer, x.z_t, x.z_0, x.q, x.negatives, chunk_bytes=chunk_bytes)
    for a, b in zip(parts, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    out = upstream(whole)
    got = torch.autograd.grad(list(parts), leaves, out)
    want = torch.autograd.grad(list(whole), leaves, out)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_linear_layer_and_loss_under_autocast(backend):
    x = problem(2, 5, 20, 0)
    torch.manual_seed(0)
    hidden, weight = (
        torch.randn(2, 5, 6, requires_grad=True),
        torch.randn(20, 6, requires_grad=True),
    )
    with torch.autocast("cpu", torch.bfloat16):
        logits = torch.nn.functional.linear(hidden, weight)
        want = posterior_loss(logits, x.z_t, x.z_0, x.q)
        got = linear_posterior_loss(hidden, weight, None, x.z_t, x.z_0, x.q, chunk_bytes=1)
    torch.testing.assert_close(got.kl, want.kl)
    got.kl.sum().backward()
    assert weight.grad.dtype == hidden.grad.dtype == torch.float32


BAD = {
    "a mask as target": (lambda x: {"z_0": x.z_0 * 0 + 9}, r"z_0 must lie in 0\.\.8 .*got 9"),
    "a mask as negative": (
        lambda x: {"negatives": x.negatives * 0 + 9}, r"negatives must lie in 0\.\.8"),
    "a negative token": (lambda x: {"z_t": x.z_t * 0 - 1}, r"z_t must lie in 0\.\.9 .*got -1"),
    "beyond the mask": (lambda x: {"z_t": x.z_t * 0 + 10}, r"z_t must lie in 0\.\.9"),
    "one code": (lambda x: {"logits": x.logits[..., :1]}, "at least 2 codes: got K = 1"),
    "a shape": (lambda x: {"z_t": x.z_t[:, 1:]}, r"must have the shape \(2, 3\)"),
    "negatives' shape": (lambda x: {"negatives": x.negatives[0]}, r"shape \[2, n, 3\]"),
    "small integers": (lambda x: {"z_0": x.z_0.int()}, "z_0 must be int64"),
    "NaN logits": (lambda x: {"logits": x.logits * float("nan")}, "logits must be finite"),
    "a device": (lambda x: {"z_0": x.z_0.to("meta")}, "on the logits' device cpu: got meta"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_has_one_text_for_every_backend(backend, name, monkeypatch):
    monkeypatch.setenv("CDCD_CHECKS", "1")
    x = problem(2, 3, 9, 2)
    change, message = BAD[name]
    arguments = {"logits": x.logits, "z_t": x.z_t, "z_0": x.z_0, "coefficients": x.q,
                 "negatives": x.negatives} | change(x)  # fmt: skip
    with pytest.raises(ValueError, match=message):
        posterior_loss(**arguments)


def test_contrast_without_negatives(backend):
    x = problem(2, 3, 9, 0)
    with pytest.raises(ValueError, match="neg_step needs negatives: got N = 0"):
        weighted_posterior_loss(x.logits, x.z_t, x.z_0, x.q, neg_step=torch.ones(()))


def test_published_algorithm_agrees_where_it_is_defined():
    """The baseline of the benchmark computes the same thing."""
    x = problem(5, 6, 20, 3)
    want = posterior_loss(x.logits, x.z_t, x.z_0, x.q, x.negatives)
    got = baselines.published(x.logits, x.z_t, x.z_0, x.q, x.negatives)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="no Triton there")
def test_programs_compile_ahead_of_time_without_spilling():
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "kernels.compile", "--json"],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["architecture"] for row in rows} == {80, 90, 100}
    names = " ".join(row["name"] for row in rows)
    for kernel in ("posterior_loss", "reverse_step", "forward_noise", "nearest_code"):
        assert kernel in names
    for row in rows:
        assert row["registers"] > 0
        if row["num_codes"] <= 4096:
            assert row["spilled_bytes"] == 0, row
