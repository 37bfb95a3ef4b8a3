import pytest
import torch

from cdcd.codecs.spectral import magnitudes, mel_bands, spectral_convergence, spectral_loss


def test_equal_sounds_are_at_no_distance():
    audio = torch.randn(2, 4096)
    assert spectral_convergence(audio, audio).abs().max() < 1e-6
    assert spectral_loss(audio, audio) < 1e-6


def test_silence_is_at_distance_one():
    audio = torch.randn(2, 4096)
    torch.testing.assert_close(
        spectral_convergence(torch.zeros_like(audio), audio), torch.ones(2), rtol=1e-3, atol=1e-3
    )


def test_loudness_does_not_change_jukeboxs_term():
    one, other = torch.randn(2, 4096), torch.randn(2, 4096)
    near = spectral_loss(one, other, log_share=0.0)
    torch.testing.assert_close(
        spectral_loss(one * 0.1, other * 0.1, log_share=0.0), near, rtol=1e-3, atol=1e-4
    )


def test_a_lost_quiet_attack_counts_more_in_logarithms():
    time = torch.arange(8192) / 22050
    loud = torch.sin(2 * torch.pi * 110 * time)[None]
    hat = torch.zeros_like(loud)
    hat[:, 4000:4200] = 0.05 * torch.randn(200)
    linear = spectral_loss(loud, loud + hat, log_share=0.0)
    both = spectral_loss(loud, loud + hat, log_share=1.0)
    assert both - linear > 4 * linear


def test_a_sine_peaks_in_its_bin():
    time = torch.arange(4096) / 22050
    tone = torch.sin(2 * torch.pi * 22050 / 1024 * 50 * time)[None]
    assert magnitudes(tone, 1024)[0, :, 8].argmax() == 50


def test_gradient_is_finite_at_digital_silence():
    audio = torch.zeros(1, 4096, requires_grad=True)
    spectral_loss(audio, torch.zeros(1, 4096)).backward()
    assert torch.isfinite(audio.grad).all()


@pytest.mark.parametrize("window", [2048, 512, 128])
def test_mel_bands_are_averages_that_leave_no_gap(window):
    bands = mel_bands(window, 22050)
    torch.testing.assert_close(bands.sum(1), torch.ones(len(bands)))
    assert (bands.sum(0)[1:-1] > 0).all()
    centres = bands.argmax(1)
    assert (centres[1:] >= centres[:-1]).all()
