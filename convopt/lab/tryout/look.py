"""What can be seen of data before anything is trained on them."""

import numpy as np
import torch

from convopt.lab.data import Dataset
from convopt.lab.names import in_a_line
from convopt.lab.networks import IN_PLACE, NETWORKS, make

MOST_ROWS = 2000
"""Rows that the noise of labels is estimated from; more would take long and tell little."""

SMALL_SIDE = 16
"""Images with a shorter side than this are seen by a perceptron as well as by a convolutional network."""


def described(dataset: Dataset) -> list[str]:
    """A line each on inputs and targets, on the classes, and on the share of labels that look wrong."""
    counts = ", ".join(f"{len(getattr(dataset, part))} {part}" for part in ("train", "validation", "test"))
    lines = [f"{dataset.name}: {dataset.kind} of shape {dataset.shape}, {dataset.task}; {counts}."]
    if dataset.note:
        lines.append(f"{dataset.note[0].upper()}{dataset.note[1:]}.")
    if dataset.task == "classification":
        shares = torch.bincount(dataset.train.y, minlength=dataset.outputs) / len(dataset.train)
        lines.append(
            f"{dataset.outputs} classes of {100 * shares.min():.1f} to {100 * shares.max():.1f} % of the training rows."
        )
        lines.append(
            f"About {100 * suspected_noise(dataset):.0f} % of the training labels look wrong (cross-validated forest; "
            "hard examples count, too)."
        )
    return lines


def suspected_noise(dataset: Dataset) -> float:
    """The share of training labels that a random forest, which did not see them, confidently contradicts.

    A label counts where another class is more probable than such labels' rows are on average themselves.
    Source: Northcutt et al., Confident Learning (JAIR 2021), section 3.
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import cross_val_predict

    x, y = dataset.train.x[:MOST_ROWS].flatten(1).numpy(), dataset.train.y[:MOST_ROWS].numpy()
    classes, counts = np.unique(y, return_counts=True)
    keep = np.isin(y, classes[counts >= 3])
    x, y = x[keep], np.unique(y[keep], return_inverse=True)[1]
    if len(np.unique(y)) < 2:
        return 0.0
    forest = RandomForestClassifier(100, max_features="sqrt", random_state=0)
    probabilities = cross_val_predict(forest, x, y, cv=3, method="predict_proba")
    usual = np.array([probabilities[y == each, each].mean() for each in range(probabilities.shape[1])])
    confident = np.where(probabilities >= usual, probabilities, 0)
    return float(((confident.argmax(1) != y) & (confident.max(1) > 0)).mean())


def fitting_network(dataset: Dataset) -> str:
    """The name of a small network for such data."""
    if dataset.kind == "image" and (min(dataset.shape[1:]) < SMALL_SIDE or any(side % 4 for side in dataset.shape[1:])):
        return "SimpleNet"
    return IN_PLACE[dataset.kind]


def require_fit(network: str, dataset: Dataset) -> None:
    """ValueError unless the network takes such inputs, returns what is needed for each, and can be trained."""
    if network in NETWORKS and dataset.kind not in NETWORKS[network].kinds:
        fitting = [name for name, entry in NETWORKS.items() if dataset.kind in entry.kinds]
        raise ValueError(
            f"model must take {dataset.kind}, which {dataset.name} holds: one of {', '.join(fitting)}, got {network}"
        )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model = make(network, dataset.shape, dataset.outputs).eval()
        inputs = dataset.train.x[:2]
        try:
            outputs = model(inputs)
        except Exception as error:  # of any kind: the network may be the reader's
            raise ValueError(
                f"model {network} fails on inputs of shape {tuple(inputs.shape)}: {in_a_line(error)}"
            ) from error
    expected = (len(inputs), *([dataset.shape[0]] if dataset.kind == "tokens" else []), dataset.outputs)
    if not isinstance(outputs, torch.Tensor) or outputs.shape != expected:
        returned = f"shape {tuple(outputs.shape)}" if isinstance(outputs, torch.Tensor) else type(outputs).__name__
        raise ValueError(
            f"model {network} must return outputs of shape {expected} for inputs of shape {tuple(inputs.shape)}, got "
            f"{returned}"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"model {network} has no parameters to train")
