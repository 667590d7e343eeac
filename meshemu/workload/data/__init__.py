"""Built-in data sets, the way to a user's own, and the batches of training steps."""

from meshemu.workload.data.dataset import (
    Dataset,
    Samples,
    StoredSamples,
    batch,
    batch_indices,
    empty_batch,
    stored_dataset,
)
from meshemu.workload.data.registry import DATASETS, load_dataset, load_from_file

__all__ = [
    "DATASETS",
    "Dataset",
    "Samples",
    "StoredSamples",
    "batch",
    "batch_indices",
    "empty_batch",
    "load_dataset",
    "load_from_file",
    "stored_dataset",
]
