"""What number formats cost against a cast of torch to bf16, on one thread, in processor time.

    python scripts/bench_formats.py [--elements 10000 100000 1000000 10000000] [--repeats 40]

Each figure is the best of all repeats, which take turns so that a busy machine slows all of them alike. A cast to bf16
writes two bytes an element; what writes fp32 (decode, rounding) stands beside a cast to bf16 and back as well.
"""

import argparse
import time
from collections.abc import Callable, Mapping

import torch

from meshemu.hardware.number_formats import FORMATS, NumberFormat
from meshemu.workload.formats.codes import decode, encode
from meshemu.workload.formats.random_bits import Stream, counted, random_bits
from meshemu.workload.formats.rounding import round_to

REFERENCE = "to bf16"
BACK = "to bf16 and back"
SHORT_ROWS = 20
SAMPLE_ELEMENTS = 10**6
"""Elements that a sample works on at least: small tensors are gone through several times."""


def cases(n: int) -> Mapping[str, Callable[[], object]]:
    """Name -> what is timed."""
    x = torch.randn(n // SHORT_ROWS * SHORT_ROWS)
    random = random_bits(tuple(x.shape), {}, Stream(tuple(x.shape)), 0)
    found: dict[str, Callable[[], object]] = {
        REFERENCE: lambda: x.to(torch.bfloat16), BACK: lambda: x.to(torch.bfloat16).to(torch.float32)
    }  # fmt: skip
    for name, number_format in FORMATS.items():
        if name != "fp32":
            found |= _of_format(name, number_format, x, random)
    for columns in (1000, SHORT_ROWS):
        shape = n // columns, columns
        found[f"cfloat8_1_4_3 stochastic, bits counted, rows of {columns:,}"] = _counting(x, shape)
    return found


def _of_format(
    name: str, number_format: NumberFormat, x: torch.Tensor, random: torch.Tensor
) -> dict[str, Callable[[], object]]:
    bias = None if number_format.fixed else 7
    codes = encode(x, number_format, bias)
    return {
        f"{name} encode": lambda: encode(x, number_format, bias),
        f"{name} encode, stochastic": lambda: encode(x, number_format, bias, random),
        f"{name} decode": lambda: decode(codes, number_format, bias),
        f"{name} round to nearest": lambda: round_to(x, number_format, bias),
        f"{name} round stochastically": lambda: round_to(x, number_format, bias, random),
    }


def _counting(x: torch.Tensor, shape: tuple[int, int]) -> Callable[[], object]:
    block, stream = x[: shape[0] * shape[1]].view(shape), Stream(shape)
    return lambda: round_to(block, FORMATS["cfloat8_1_4_3"], 7, counted(shape, {}, stream, 0))


def measured(timed: Mapping[str, Callable[[], object]], repeats: int, calls: int) -> dict[str, float]:
    """Best processor time of a call of each case in seconds."""
    best = dict.fromkeys(timed, float("inf"))
    for _ in range(repeats):
        for name, call in timed.items():
            began = time.process_time()
            for _ in range(calls):
                call()
            best[name] = min(best[name], (time.process_time() - began) / calls)
    return best


def main() -> None:
    """Print a table: times the cast to bf16 (and, in brackets, to bf16 and back) by number of elements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7])
    parser.add_argument("--repeats", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for n in options.elements:
        found[n] = measured(cases(n), options.repeats, max(1, SAMPLE_ELEMENTS // n))
    print("| ratio to a cast to bf16 (and back) | " + " | ".join(f"{n:,}" for n in found) + " |")
    print("|---|" + "---|" * len(found))
    for name in next(iter(found.values())):
        cells = [f"{of[name] / of[REFERENCE]:.2f} ({of[name] / of[BACK]:.2f})" for of in found.values()]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("| " + REFERENCE + ", ms | " + " | ".join(f"{1e3 * of[REFERENCE]:.4f}" for of in found.values()) + " |")


if __name__ == "__main__":
    main()
