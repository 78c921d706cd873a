"""The toy problems of the theory pages behave as the theory says."""

import pytest
import torch

from convopt.lab import data, toys
from convopt.theory import kernel_loss, kernels, spectrum
from convopt.theory.smoothing import shift_statistics


def test_the_box_kernel_diverges_where_a_positive_semidefinite_one_converges():
    losses = {
        name: toys.descend_quadratic(kernels.NAMED_KERNELS[name](3), 200, 0.2) for name in ("uniform", "laplacian")
    }
    assert losses["uniform"][-1] > 1e3 * losses["uniform"][0]
    assert losses["laplacian"][-1] < 1e-3 * losses["laplacian"][0]


@pytest.mark.parametrize("centre", [0.3, 0.5, 0.75, 0.95])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_a_white_gradient_teaches_the_centre_tap_that_the_closed_form_says(centre, scale):
    grad = scale * torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = kernel_loss.white_noise_weight(centre, 5) / grad.var(correction=0).item()
    statistics = shift_statistics(grad, 5)
    taps = toys.minimise_on_simplex(lambda w: kernel_loss.local_loss_of_taps(w, statistics, weight), 5)
    assert taps[2].item() == pytest.approx(centre, abs=0.02)


@pytest.mark.parametrize(("centre", "size"), [(0.2, 5), (1.1, 5), (0.9, 1), (0.5, 4)])
def test_a_centre_tap_that_no_weight_teaches_is_refused(centre, size):
    with pytest.raises(ValueError, match=r"centre|size"):
        kernel_loss.white_noise_weight(centre, size)


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
def test_pairs_of_noisy_gradients_teach_the_wiener_filter_of_the_signal(noise):
    signal = toys.smooth_signal(400)
    alone = shift_statistics(signal, 5, boundary="circular")
    products = alone.products + noise**2 * torch.eye(5, dtype=torch.float64)
    expected = torch.linalg.solve(products, alone.products[2])
    learned = kernel_loss.wiener_taps(toys.pair_statistics(signal, noise, 5, pairs=300))
    torch.testing.assert_close(learned, expected, atol=0.03, rtol=0)


def test_smoothing_the_first_layers_gradient_is_training_on_blurred_images():
    digits = data.load("digits")
    gain = spectrum.kernel_gain(kernels.laplacian(5, 2), digits.grid)
    course = toys.train_smoothed_and_blurred(digits, gain, steps=200, lr=0.1)
    assert course["difference"].max() < 1e-12
    assert course["smoothed"].tolist() == pytest.approx(course["blurred"].tolist(), rel=1e-10)
    assert course["smoothed"].tail(10).mean() < 0.8 * course["smoothed"].head(10).mean()


def test_the_taps_of_pixels_in_their_order_smooth_more_than_those_of_shuffled_ones():
    digits = data.load("digits")
    natural, shuffled = (toys.first_layer_taps(digits, 3, 8, pairs=50, shuffled=order) for order in (False, True))
    assert natural.shape == shuffled.shape == (3, 3)
    beside = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]]) / 4
    assert (natural * beside).sum() / natural[1, 1] > 2 * ((shuffled * beside).sum() / shuffled[1, 1]).abs()


def test_gradients_are_timed_turn_by_turn():
    table = toys.time_gradients([(100,), (20, 30)], repeats=2)
    assert list(table.index) == ["100", "20 x 30"]
    assert (table > 0).all(axis=None)
