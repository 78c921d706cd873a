"""Small tables that come with scikit-learn: one to classify, one to regress."""

from functools import lru_cache
from pathlib import Path

from convopt.lab.data.dataset import Dataset
from convopt.lab.data.files import of_table


@lru_cache(maxsize=1)
def breast_cancer(_: Path) -> Dataset:
    """569 tumours with 30 features, benign or malignant (Wolberg et al., 1995)."""
    from sklearn.datasets import load_breast_cancer

    return of_table("breast-cancer", *load_breast_cancer(return_X_y=True))


@lru_cache(maxsize=1)
def diabetes(_: Path) -> Dataset:
    """442 patients with 10 features; a number for the course of their disease (Efron et al., 2004)."""
    from sklearn.datasets import load_diabetes

    return of_table("diabetes", *load_diabetes(return_X_y=True))
