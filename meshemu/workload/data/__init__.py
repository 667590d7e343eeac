"""Built-in data sets, the way to a user's own, and the batches of training steps."""

from meshemu.workload.data.dataset import Dataset, batch, batch_indices
from meshemu.workload.data.registry import DATASETS, load_dataset, load_from_file

__all__ = ["DATASETS", "Dataset", "batch", "batch_indices", "load_dataset", "load_from_file"]
