"""Data sets: those that are known by name, and the reader's own files. Each is checked, split and normalised.

A name is added by one entry of ``registry.ENTRIES``.
"""

from convopt.lab.data.dataset import DataError, Dataset, Split, corrupt_targets, permute_pixels, transform_inputs
from convopt.lab.data.registry import (
    ENTRIES,
    Description,
    can_be_had,
    data_folder,
    describe,
    fingerprint,
    full_name,
    is_at_hand,
    load,
    require_dataset,
)

__all__ = [
    "ENTRIES",
    "DataError",
    "Dataset",
    "Description",
    "Split",
    "can_be_had",
    "corrupt_targets",
    "data_folder",
    "describe",
    "fingerprint",
    "full_name",
    "is_at_hand",
    "load",
    "permute_pixels",
    "require_dataset",
    "transform_inputs",
]
