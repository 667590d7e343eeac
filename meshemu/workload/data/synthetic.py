"""Random samples of any size: for timing studies, where the shapes matter and the values do not."""

import torch

from meshemu.workload.arguments import check_positive
from meshemu.workload.data.dataset import Dataset, stored_dataset

__all__ = ["random_images", "random_tokens"]


def random_images(
    image_size: int = 224, channels: int = 3, n_classes: int = 1000, n_samples: int = 256, seed: int = 0
) -> Dataset:
    """Images (channels, image_size, image_size) of standard normal float32 with random labels.

    As many samples are held out as there are to train on, `n_samples` of each.

    Raises:
        InputError: a size below 1.
    """
    check_positive(
        "data random_images", image_size=image_size, channels=channels, n_classes=n_classes, n_samples=n_samples
    )
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(2 * n_samples, channels, image_size, image_size, generator=generator)
    targets = torch.randint(n_classes, (2 * n_samples,), generator=generator)
    return stored_dataset(
        train_inputs=inputs[:n_samples], train_targets=targets[:n_samples],
        test_inputs=inputs[n_samples:], test_targets=targets[n_samples:],
        n_classes=n_classes, description=f"random images {channels}x{image_size}x{image_size}, {n_classes} classes",
    )


def random_tokens(context: int = 64, vocab_size: int = 96, n_samples: int = 256, seed: int = 0) -> Dataset:
    """Sequences of `context` random tokens, int64; the targets are the tokens that follow.

    As many samples are held out as there are to train on, `n_samples` of each.

    Raises:
        InputError: a size below 1.
    """
    check_positive("data random_tokens", context=context, vocab_size=vocab_size, n_samples=n_samples)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocab_size, (2 * n_samples, context + 1), generator=generator)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    return stored_dataset(
        train_inputs=inputs[:n_samples], train_targets=targets[:n_samples],
        test_inputs=inputs[n_samples:], test_targets=targets[n_samples:],
        n_classes=vocab_size, description=f"random tokens, vocabulary {vocab_size}, windows of {context}",
    )
