"""Wall time of one emulated training step on 25 devices beside plain PyTorch: same model, same global batch, one core.

    python scripts/bench_step.py [--image-size 40] [--batch-size 50] [--steps 5]

`ratio` is emulated / plain, each the median of the steps after the first.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch.nn import functional

import meshemu
from meshemu.workload.models import build_model

MODEL = {
    "in_channels": 3, "num_classes": 10, "stem_width": 32, "widths": [32, 64], "depths": [1, 2], "group_width": 32,
}  # fmt: skip


def main() -> None:
    """Print one line per plan."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image-size", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = torch.randn(options.batch_size, 3, options.image_size, options.image_size)
    labels = torch.randint(0, 10, (options.batch_size,))
    plain_s = median_s(plain_step(images, labels), options.steps)
    print(f"RegNet, {options.batch_size} images of {options.image_size} px, one core")
    print(f"{'':<14}{'s/step':>10}{'ratio':>8}")
    print(f"{'plain PyTorch':<14}{plain_s:>10.3f}{1:>8.2f}")
    for plan in ("spatial", "data"):
        emulated_s = emulated_median_s(plan, images, labels, options.steps)
        print(f"{plan:<14}{emulated_s:>10.3f}{emulated_s / plain_s:>8.2f}")


def plain_step(images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """One step of the model in plain PyTorch."""
    model = build_model("regnet", MODEL).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def median_s(step: Callable[[], None], steps: int) -> float:
    """Median wall time of `step` after one warm-up."""
    step()
    times = []
    for _ in range(steps):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def emulated_median_s(plan: str, images: torch.Tensor, labels: torch.Tensor, steps: int) -> float:
    """Median wall time between batches that the emulated run asks for."""
    asked: list[float] = []

    def batch(_step: int) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(time.perf_counter())
        return images, labels

    meshemu.emulate(
        build_model("regnet", MODEL), batch, functional.cross_entropy, plan=plan, steps=steps + 2,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        system=meshemu.System.preset("dojo-tile"),
    )  # fmt: skip
    in_steps = asked[2:]  # the first call is for the capture, the second starts the warm-up step
    return statistics.median(b - a for a, b in pairwise(in_steps))


if __name__ == "__main__":
    main()
