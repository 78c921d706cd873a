"""spatial_param_groups finds the weights that look at images, and leaves the model as it was."""

import pytest
import torch
import torch.nn.functional as F
from digits import torchvision
from torch import nn

from convopt import WienerSGD, spatial_param_groups


class Functional(nn.Module):
    """Convolution, normalisation, dropout, pooling; flattened by hand."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.first = nn.Linear(4 * 8 * 6, 10)
        self.second = nn.Linear(10, 2)

    def forward(self, x):
        x = F.dropout(F.relu(self.norm(self.convolution(x))), 0.5, self.training)
        x = F.max_pool2d(x, 2)
        return self.second(self.first(x.view(x.size(0), -1)).relu())


class Sequence(nn.Module):
    """Channels over time, in one branch flattened, in the other through a long convolution."""

    def __init__(self):
        super().__init__()
        self.flat = nn.Linear(2 * 20, 3)
        self.long = nn.Conv1d(2, 5, 9)
        self.short = nn.Conv1d(5, 5, 3)

    def forward(self, x):
        return self.flat(x.flatten(1)), self.short(self.long(x))


class PatchEmbedding(nn.Module):
    """As in a vision transformer: large patches, tokens, layers over features that are no images."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 8, stride=8)
        self.block = nn.TransformerEncoderLayer(12, 2, 24, batch_first=True)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.block(tokens).mean(1))


class ChannelsMixed(nn.Module):
    """Flattened with the channels last, which no grid describes; and features that have the image's size."""

    def __init__(self):
        super().__init__()
        self.mixed = nn.Linear(2 * 4 * 4, 32)
        self.features = nn.Linear(32, 32)

    def forward(self, x):
        return self.features(self.mixed(x.permute(0, 2, 3, 1).flatten(1)))


class Padded(nn.Module):
    """Texts, made longer by zeros: what their features lie in is no image."""

    def __init__(self):
        super().__init__()
        self.letters = nn.Embedding(20, 16)
        self.flat = nn.Linear(12 * 16, 4)

    def forward(self, x):
        return self.flat(nn.functional.pad(self.letters(x), (0, 0, 0, 2)).flatten(1))


class Behind(nn.Module):
    """A layer that sees what a function makes of images."""

    def __init__(self, function, seen: int):
        super().__init__()
        self.function = function
        self.flat = nn.Linear(seen, 4)

    def forward(self, x):
        return self.flat(self.function(x).flatten(1))


def grids(model: nn.Module, sample_input) -> dict[str, tuple[int, ...]]:
    groups, _ = spatial_param_groups(model, sample_input)
    return {name: group["grid"] for group in groups if group["grid"] for name, _ in group["params"]}


@pytest.mark.parametrize(
    ("model", "sample_input", "expected"),
    [
        (
            nn.Sequential(nn.Flatten(), nn.Linear(784, 5), nn.ReLU(), nn.Linear(5, 784), nn.Linear(784, 2)),
            torch.zeros(1, 1, 28, 28),
            {"1.weight": (1, 28, 28)},
        ),
        (Functional(), torch.zeros(2, 3, 16, 12), {"first.weight": (4, 8, 6)}),
        (Sequence(), torch.zeros(1, 2, 20), {"flat.weight": (2, 1, 20), "long.weight": (9,)}),
        (PatchEmbedding(), torch.zeros(1, 3, 32, 32), {"patches.weight": (8, 8)}),
        (ChannelsMixed(), torch.zeros(1, 2, 4, 4), {}),
        (nn.Sequential(nn.Conv2d(1, 2, 7), nn.Conv2d(2, 2, 5)), torch.zeros(1, 1, 16, 16), {"0.weight": (7, 7)}),
        (nn.Linear(784, 10), torch.zeros(4, 784), {}),
        (Padded(), torch.zeros(1, 10, dtype=torch.int64), {}),
        (Behind(nn.ZeroPad2d(1), 36), torch.zeros(1, 1, 4, 4), {"flat.weight": (1, 6, 6)}),
    ],
    ids=[
        *("perceptron", "functional", "sequence", "patches", "channels last", "convolutions", "flat input"),
        *("padded texts", "padded images"),
    ],
)
def test_grids_are_those_of_the_images_that_the_weights_see(model, sample_input, expected):
    assert grids(model, sample_input) == expected


def test_every_parameter_is_in_one_group_and_the_account_names_what_was_found():
    model = Functional()
    groups, account = spatial_param_groups(model, torch.zeros(2, 3, 16, 12))
    found = [p for group in groups for _, p in group["params"]]
    assert len(found) == len(set(found)) == len(list(model.parameters()))
    assert "first.weight (10, 192): grid (4, 8, 6)" in account
    assert "7 of 8 parameters have no grid" in account


def test_smaller_kernels_are_taken_where_they_are_asked_for():
    images = torch.zeros(1, 3, 16, 12)
    names = [
        name
        for group in spatial_param_groups(Functional(), images, smallest_kernel=3)[0]
        if group["grid"]
        for name, _ in group["params"]
    ]
    assert names == ["convolution.weight", "first.weight"]
    with pytest.raises(ValueError, match="smallest_kernel must be"):
        spatial_param_groups(Functional(), images, smallest_kernel=0)


def test_arguments_come_by_position_or_by_name():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, other, image):
            return other + self.layer(image.flatten(1))

    by_position = (torch.zeros(1, 1), torch.zeros(1, 1, 2, 2))
    by_name = {"other": torch.zeros(1, 1), "image": torch.zeros(1, 1, 2, 2)}
    assert grids(Two(), by_position) == grids(Two(), by_name) == {"layer.weight": (1, 2, 2)}


@pytest.mark.parametrize("training", [True, False])
def test_the_model_and_the_random_state_stay_as_they_are(training):
    model = Functional().train(training)
    model.norm.eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    spatial_param_groups(model, torch.randn(2, 3, 16, 12, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_model_that_fails_is_left_as_it_was():
    model = nn.Sequential(nn.Dropout(), nn.Linear(4, 2)).train()
    with pytest.raises(RuntimeError):
        spatial_param_groups(model, torch.zeros(1, 5))
    assert model.training
    assert model[0].training


def test_a_lazy_module_is_refused_by_name():
    with pytest.raises(ValueError, match=r"0\.weight has no shape yet"):
        spatial_param_groups(nn.Sequential(nn.LazyLinear(3)), torch.zeros(1, 4))


def test_a_training_loop_takes_the_groups_and_learns():
    torch.manual_seed(0)
    model = Functional()
    x = torch.randn(64, 3, 16, 12)
    y = (x.mean((1, 2, 3)) > 0).long()
    groups, _ = spatial_param_groups(model, x[:2])
    optimizer = WienerSGD(groups, lr=0.05)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert list(optimizer.snr().parameters) == ["first.weight"]


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [("resnet18", 64, {"conv1.weight": (7, 7)}), ("vit_b_16", 224, {"conv_proj.weight": (16, 16)})],
)
def test_of_torchvisions_models_it_finds_the_stem(name, size, expected):
    with torch.device("meta"):
        model = getattr(torchvision().models, name)()
    assert grids(model, torch.zeros(1, 3, size, size, device="meta")) == expected


KEEPING = {
    "Hardshrink": nn.Hardshrink(),
    "Softshrink": nn.Softshrink(),
    "Softsign": nn.Softsign(),
    "Tanhshrink": nn.Tanhshrink(),
    "Threshold": nn.Threshold(0, 0),
    "LogSigmoid": nn.LogSigmoid(),
    "Softmax2d": nn.Softmax2d(),
    "abs": torch.abs,
    "neg": torch.neg,
    "one minus": lambda x: 1 - x,
    "square": lambda x: x**2,
    "clip": lambda x: x.clip(0),
}


@pytest.mark.parametrize("function", KEEPING.values(), ids=KEEPING.keys())
def test_what_keeps_an_image_does_not_hide_it(function):
    assert grids(Behind(function, 64), torch.zeros(1, 1, 8, 8)) == {"flat.weight": (1, 8, 8)}


@pytest.mark.parametrize(
    "pooling",
    [nn.FractionalMaxPool2d(2, output_size=4), lambda x: nn.functional.max_pool2d(x, 2, return_indices=True)[0]],
)
def test_a_pooling_that_tells_its_indices_makes_images_too(pooling):
    assert grids(Behind(pooling, 16), torch.zeros(1, 1, 8, 8)) == {"flat.weight": (1, 4, 4)}


def test_a_batch_of_one_that_is_squeezed_to_a_number_is_followed_to_its_end():
    class Critic(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv2d(1, 1, 28)

        def forward(self, x):
            return self.convolution(x).squeeze()

    groups, _ = spatial_param_groups(Critic(), torch.zeros(1, 1, 28, 28))
    assert [group["grid"] for group in groups] == [None, (28, 28)]
