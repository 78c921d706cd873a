"""WeightAveraging: the average of the last part of a run, used where the gradient says that it is better."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from subjects import SUBJECTS, assert_same, gradients, groups_of, new_params, train
from torch import nn

from convopt import SNRAnnealing, WeightAveraging, WienerFilter


def walk(weights: list[torch.Tensor], share: float = 0.05, every: int = 1) -> WeightAveraging:
    """An average of weights that are given one after the other."""
    p = nn.Parameter(weights[0].clone())
    averaging = WeightAveraging(torch.optim.SGD([p], lr=1e-9), share=share, every=every)
    for each in weights:
        with torch.no_grad():
            p.copy_(each)
        p.grad = torch.ones_like(p)
        averaging.optimizer.step()
    return averaging


def average_of(averaging: WeightAveraging) -> torch.Tensor:
    return averaging.state_dict()["averages"][0]


class Valley:
    """A quadratic bowl, ill-conditioned, whose gradients are noisy."""

    curvature = torch.logspace(-2, 0, 50)

    def train(self, lr: float, steps: int, seed: int = 0) -> tuple[nn.Parameter, WeightAveraging]:
        p = nn.Parameter(torch.ones(50))
        optimizer = torch.optim.SGD([p], lr=lr)
        averaging, generator = WeightAveraging(optimizer), torch.Generator().manual_seed(seed)
        for _ in range(steps):
            p.grad = self.curvature * p.detach() + torch.randn(50, generator=generator)
            optimizer.step()
        return p, averaging

    def loss(self, p: torch.Tensor) -> float:
        return (self.curvature * p.detach().square()).sum().item() / 2


def train_in_valley(p: nn.Parameter, optimizer: torch.optim.Optimizer, steps: int, before=lambda: None) -> None:
    """At a high learning rate the average is better."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        before()
        p.grad = Valley.curvature * p.detach() + torch.randn(50, generator=generator)
        optimizer.step()


class WithBuffers(nn.Module):
    """Buffers as others' modules have them."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(50))
        self.register_buffer("mask", torch.full((4, 4), -math.inf).triu(1))
        self.register_buffer("codes", torch.zeros(3))
        self.register_buffer("least", torch.tensor(math.inf))
        self.register_buffer("expanded", torch.zeros(1).expand(5))

    def change(self) -> None:
        self.codes = 0.99 * self.codes + 0.01  # another tensor under the same name
        self.least.copy_(torch.minimum(self.least, self.codes.min()))


class TestBuffers:
    def trained(self) -> tuple[WithBuffers, WeightAveraging]:
        model = WithBuffers()
        averaging = WeightAveraging(torch.optim.SGD(model.parameters(), lr=1.0), model, every=1)
        averaging.load_state_dict(averaging.state_dict())
        train_in_valley(model.weight, averaging.optimizer, 100, before=model.change)
        assert averaging.helps()
        return model, averaging

    def test_that_hold_infinities_keep_them(self):
        model, averaging = self.trained()
        mask = model.mask.clone()
        with averaging.averaged() as is_averaged:
            assert is_averaged
            assert torch.equal(model.mask, mask)
            assert model.least.isfinite()
        assert not any(average.isnan().any() for average in averaging.state_dict()["averages"])

    def test_that_are_replaced_at_each_step_are_averaged_under_their_name(self):
        model, averaging = self.trained()
        own = model.codes.clone()
        assert len(averaging.state_dict()["averages"]) == 4
        with averaging.averaged():
            assert (model.codes < own).all()
        assert torch.equal(model.codes, own)

    def test_that_are_converted_inside_are_their_own_afterwards(self):
        model, averaging = self.trained()
        own = model.codes.clone()
        with averaging.averaged():
            model.double()
        torch.testing.assert_close(model.codes, own.double())

    def test_that_share_their_memory_stay_as_they_are_and_keep_no_step_from_being_taken(self):
        model, averaging = self.trained()
        with averaging.averaged():
            assert (model.expanded == 0).all()
        averaging.optimizer.step()


class TestTheAverage:
    @given(st.lists(st.floats(-10, 10), min_size=1, max_size=30), st.floats(0.01, 1.0))
    def test_is_the_polynomial_decay_average_of_its_source(self, values, share):
        eta, expected = 1 / share - 1, 0.0
        for n, value in enumerate(values, 1):
            expected += (eta + 1) / (n + eta) * (value - expected)
        averaging = walk([torch.tensor([value], dtype=torch.float64) for value in values], share)
        assert average_of(averaging).item() == pytest.approx(expected, abs=1e-6)

    def test_of_the_whole_run_is_the_mean(self):
        averaging = walk([torch.tensor([float(n)]) for n in range(11)], share=1.0)
        assert average_of(averaging).item() == pytest.approx(5.0)

    @pytest.mark.parametrize("steps", [200, 2000])
    @pytest.mark.parametrize("share", [0.05, 0.2])
    def test_reaches_back_over_a_share_of_the_run_however_long_it_is(self, steps, share):
        """Its mean age is the share of the run, over one share more."""
        averaging = walk([torch.tensor([n / steps], dtype=torch.float64) for n in range(steps)], share)
        assert 1 - average_of(averaging).item() == pytest.approx(share / (1 + share), rel=0.2)

    def test_looks_at_every_so_many_steps(self):
        averaging = walk([torch.tensor([float(n)]) for n in range(9)], share=1.0, every=4)
        assert average_of(averaging).item() == pytest.approx((0 + 4 + 8) / 3)

    def test_of_weights_in_half_precision_is_kept_in_float32(self):
        weights = [torch.full((3,), 1.0 + (n % 2) / 128, dtype=torch.bfloat16) for n in range(400)]
        average = average_of(walk(weights))
        assert average.dtype == torch.float32
        torch.testing.assert_close(average, torch.full((3,), 1 + 1 / 256), rtol=0, atol=2e-3)
        assert average[0].item() not in (1.0, 1 + 1 / 128)

    def test_stays_as_it_is_once_weights_are_not_finite(self):
        averaging = walk([torch.tensor([1.0, 2.0])] * 5 + [torch.tensor([math.nan, 2.0])] * 5)
        torch.testing.assert_close(average_of(averaging), torch.tensor([1.0, 2.0]))

    def test_of_a_parameter_that_gets_gradients_late_begins_there(self):
        early, late = (nn.Parameter(torch.zeros(2)) for _ in range(2))
        averaging = WeightAveraging(torch.optim.SGD([early, late], lr=0.1), every=1)
        for step in range(20):
            early.grad = torch.ones(2)
            if step == 10:
                with torch.no_grad():
                    late.fill_(7.0)
            late.grad = torch.zeros(2) if step >= 10 else None
            averaging.optimizer.step()
        torch.testing.assert_close(averaging.state_dict()["averages"][1], torch.full((2,), 7.0))

    def test_of_a_parameter_that_is_frozen_goes_to_its_value(self):
        trained, frozen = (nn.Parameter(torch.zeros(2)) for _ in range(2))
        averaging = WeightAveraging(torch.optim.SGD([trained, frozen], lr=0.1), every=1)
        for step in range(400):
            trained.grad = torch.ones(2)
            frozen.grad = torch.ones(2) if step < 20 else None
            averaging.optimizer.step()
        assert (averaging.state_dict()["averages"][1] - frozen).abs().max() < 0.01 * frozen.abs().max()

    def test_of_a_parameter_without_gradients_is_none_after_a_checkpoint_too(self):
        """As a target network's, which its user moves."""
        valley, target = nn.Parameter(torch.ones(50)), nn.Parameter(torch.zeros(3), requires_grad=False)
        optimizer = torch.optim.SGD([valley, target], lr=1.0)
        averaging = WeightAveraging(optimizer, every=1)
        train_in_valley(valley, optimizer, 100)
        averaging.load_state_dict(averaging.state_dict())
        target.fill_(7.0)
        with averaging.averaged() as is_averaged:
            assert is_averaged
            assert (target == 7).all()

    def test_is_not_put_into_a_parameter_that_left_the_optimizer(self):
        valley, leaves = nn.Parameter(torch.ones(50)), nn.Parameter(torch.zeros(3))
        optimizer = torch.optim.SGD([{"params": [valley]}, {"params": [leaves]}], lr=1.0)
        averaging = WeightAveraging(optimizer, every=1)
        leaves.grad = torch.zeros(3)
        train_in_valley(valley, optimizer, 100)
        del optimizer.param_groups[1]
        with torch.no_grad():
            leaves.fill_(7.0)
        with averaging.averaged() as is_averaged:
            assert is_averaged
            assert (leaves == 7).all()


class TestTheSlope:
    def test_is_the_averaged_cosine_between_gradient_and_the_way_to_the_average(self):
        params, averages, slope, looks = new_params(), None, 0.0, 0
        averaging = WeightAveraging(torch.optim.SGD(params, lr=0.01), share=0.3, every=1)
        for n, of_step in enumerate(gradients(25)):
            for p, grad in zip(params, of_step, strict=True):
                p.grad = grad.clone()
            w, g = (torch.cat([each.detach().flatten().double() for each in of]) for of in (params, of_step))
            averages = w.clone() if averages is None else averages
            if n:
                cosine = torch.nn.functional.cosine_similarity(g, averages - w, 0).item()
                slope += (cosine - slope) / (1 + 0.3 * looks)
                looks += 1
            averages += (w - averages) / (1 + 0.3 * n)
            averaging.optimizer.step()
        assert averaging.slope() == pytest.approx(slope, rel=1e-4)
        assert -1 <= averaging.slope() <= 1

    def test_is_zero_before_there_is_anything_to_see(self):
        averaging = WeightAveraging(torch.optim.SGD(new_params(), lr=0.1))
        assert averaging.slope() == 0
        assert not averaging.helps()

    @pytest.mark.parametrize("odd", [math.nan, math.inf])
    def test_does_not_follow_a_gradient_that_is_not_finite(self, odd):
        slopes = []
        for last in (0.0, odd):
            p = nn.Parameter(torch.ones(4))
            averaging = WeightAveraging(torch.optim.SGD([p], lr=0.1), every=1)
            for value in (1.0, 1.0, 1.0, last):
                p.grad = torch.full((4,), value)
                averaging.optimizer.step()
            slopes.append(averaging.slope())
        assert slopes[0] == slopes[1] > 0


class TestWhereItHelps:
    def test_at_a_high_learning_rate_the_averaged_weights_are_in_place_and_far_better(self):
        valley = Valley()
        p, averaging = valley.train(lr=1.0, steps=3000)
        own = p.detach().clone()
        with averaging.averaged() as is_averaged:
            assert is_averaged
            averaged = valley.loss(p)
        assert averaged < 0.3 * valley.loss(p)
        assert_same([p], [own])

    def test_at_a_low_learning_rate_the_weights_still_make_progress_and_stay_in_place(self):
        valley = Valley()
        p, averaging = valley.train(lr=0.001, steps=1000)
        own = p.detach().clone()
        with averaging.averaged() as is_averaged:
            assert not is_averaged
            assert_same([p], [own])
        assert valley.loss(average_of(averaging)) > valley.loss(p)

    @pytest.mark.slow
    @pytest.mark.parametrize("steps", [200, 1000])
    @pytest.mark.parametrize("exponent", [-3, -2.5, -2, -1.5, -1, -0.5, 0, 0.2])
    def test_whatever_the_learning_rate_it_costs_next_to_nothing(self, exponent, steps):
        """Two percent of the loss in the mean of eight runs, ten in the worst: the slope is of the first order."""
        valley, ratios = Valley(), []
        for seed in range(8):
            p, averaging = valley.train(10**exponent, steps, seed)
            own = valley.loss(p)
            with averaging.averaged():
                ratios.append(valley.loss(p) / own)
        assert sum(ratios) / len(ratios) <= 1.02
        assert max(ratios) <= 1.1


class TestTheModel:
    def test_is_trained_as_without(self):
        outcomes = []
        for attach in (WeightAveraging, lambda optimizer: None):
            params = new_params()
            optimizer = torch.optim.AdamW(params, lr=0.01)
            attach(optimizer)
            for of_step in gradients(20):
                for p, grad in zip(params, of_step, strict=True):
                    p.grad = grad.clone()
                optimizer.step()
            outcomes.append(params)
        assert_same(*outcomes)

    def trained(self) -> tuple[nn.Module, WeightAveraging]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        averaging = WeightAveraging(optimizer, model)
        for _ in range(400):
            optimizer.zero_grad()
            x = torch.randn(16, 6)
            nn.functional.cross_entropy(model(x), (x[:, 0] + torch.randn(16) > 0).long()).backward()
            optimizer.step()
        return model.eval(), averaging

    def test_has_the_averages_of_its_buffers_too_and_its_own_again_afterwards(self):
        model, averaging = self.trained()
        own = {name: value.clone() for name, value in model.state_dict().items()}
        with averaging.averaged() as is_averaged:
            assert is_averaged
            inside = {name: value.clone() for name, value in model.state_dict().items()}
        assert not torch.equal(inside["1.running_mean"], own["1.running_mean"])
        assert torch.equal(inside["1.num_batches_tracked"], own["1.num_batches_tracked"])
        assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())

    def test_has_its_own_weights_again_after_an_error(self):
        model, averaging = self.trained()
        own = [p.detach().clone() for p in model.parameters()]
        with pytest.raises(KeyboardInterrupt), averaging.averaged():
            raise KeyboardInterrupt
        assert_same(model.parameters(), own)
        averaging.optimizer.step()

    def test_takes_no_step_inside_and_is_not_averaged_twice(self):
        model, averaging = self.trained()
        with averaging.averaged():
            inside = [p.detach().clone() for p in model.parameters()]
            with pytest.raises(RuntimeError, match=r"no step inside of averaged\(\)"):
                averaging.optimizer.step()
            with pytest.raises(RuntimeError, match="entered twice"), averaging.averaged():
                pass
            assert_same(model.parameters(), inside)

    def test_takes_no_step_inside_where_the_weights_stay_in_place_either(self):
        _, averaging = Valley().train(lr=1e-4, steps=50)
        with averaging.averaged() as is_averaged:
            assert not is_averaged
            with pytest.raises(RuntimeError, match=r"no step inside of averaged\(\)"):
                averaging.optimizer.step()
        averaging.optimizer.step()

    def test_is_not_copied_inside(self):
        _, averaging = self.trained()
        with averaging.averaged(), pytest.raises(RuntimeError, match=r"no copy inside of averaged\(\)"):
            copy.deepcopy(averaging)

    def test_may_be_evaluated_in_inference_mode(self):
        model, averaging = self.trained()
        with torch.inference_mode(), averaging.averaged():
            inside = model(torch.ones(1, 6))
        assert not torch.allclose(inside, model(torch.ones(1, 6)))


class TestWhatIsRefused:
    @pytest.mark.parametrize("share", [0, 1.5, -0.1, True, "half"])
    def test_a_share_out_of_range(self, share):
        with pytest.raises(ValueError, match=r"share must be a number in \(0, 1\]"):
            WeightAveraging(torch.optim.SGD(new_params(), lr=0.1), share=share)

    def test_an_every_out_of_range(self):
        with pytest.raises(ValueError, match="every must be an integer of at least 1, got 0"):
            WeightAveraging(torch.optim.SGD(new_params(), lr=0.1), every=0)

    def test_a_model_that_is_none(self):
        with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got list"):
            WeightAveraging(torch.optim.SGD(new_params(), lr=0.1), new_params())

    def test_to_be_attached_twice(self):
        optimizer = torch.optim.SGD(new_params(), lr=0.1)
        WeightAveraging(optimizer)
        with pytest.raises(RuntimeError, match="has a WeightAveraging already"):
            WeightAveraging(optimizer)

    def test_a_checkpoint_with_another_number_of_buffers(self):
        model = nn.BatchNorm1d(3)
        averaging = WeightAveraging(torch.optim.SGD(model.parameters(), lr=0.1), model)
        other = WeightAveraging(torch.optim.SGD(model.parameters(), lr=0.1))
        with pytest.raises(ValueError, match="must hold 4 averages, got 2"):
            averaging.load_state_dict(other.state_dict())


def test_a_resumed_average_goes_on_as_if_nothing_had_happened():
    """Also how far it reaches back, which follows from the number of steps."""
    make, params, grads = SUBJECTS["WeightAveraging around SGD"], new_params(), gradients(40)
    subject = make(groups_of(params))
    train(subject, params, grads[:21])
    resumed = [nn.Parameter(p.detach().clone()) for p in params]
    other = make(groups_of(resumed))
    other.load(subject.saved())
    for each, of_it in ((subject, params), (other, resumed)):
        train(each, of_it, grads[21:])
    assert_same(subject.learnt(), other.learnt())
    assert subject.attached.slope() != 0


def test_unless_told_otherwise_it_reaches_back_over_a_twentieth_of_the_run_and_looks_at_every_fourth_step():
    averages = []
    for options in ({}, {"share": 0.05, "every": 4}):
        p = nn.Parameter(torch.zeros(5))
        averaging = WeightAveraging(torch.optim.SGD([p], lr=0.1), **options)
        for step in range(50):
            p.grad = torch.full((5,), float(step))
            averaging.optimizer.step()
        averages.append(average_of(averaging))
    assert_same(averages[:1], averages[1:])


def test_filter_annealing_and_averaging_hang_on_one_optimizer():
    p = nn.Parameter(torch.randn(4, 16))
    optimizer = torch.optim.SGD([{"params": [p], "grid": (16,)}], lr=0.1)
    attached = SNRAnnealing(optimizer), WienerFilter(optimizer), WeightAveraging(optimizer)
    for _ in range(10):
        p.grad = torch.randn(4, 16)
        optimizer.step()
    assert math.isfinite(attached[2].slope())
    for each in attached:
        each.detach()
    assert "step" not in vars(optimizer)
