"""What rounding costs against a cast to bf16 and back, on a million elements of fp32, in processor time.

    python scripts/bench_formats.py [--elements 1048576] [--repeats 40]

Each line is the best of all repeats, which take turns so that a busy machine slows all of them alike.
"""

import argparse
import time
from collections.abc import Callable, Mapping

import torch

from meshemu.hardware.number_formats import FORMATS
from meshemu.workload.formats.codes import decode, encode
from meshemu.workload.formats.random_bits import Stream, random_bits
from meshemu.workload.formats.rounding import round_to

REFERENCE = "bf16 cast and back"


def cases(n: int) -> Mapping[str, Callable[[], object]]:
    """Name -> what is timed."""
    x = torch.randn(n)
    f143, f152, shp, bf16 = (FORMATS[name] for name in ("cfloat8_1_4_3", "cfloat8_1_5_2", "cfloat16_shp", "bf16"))
    codes, random = encode(x, f143, 7), random_bits((n,), {}, Stream((n,)), 0)
    return {
        REFERENCE: lambda: x.to(torch.bfloat16).to(torch.float32),
        "cfloat8_1_4_3 encode": lambda: encode(x, f143, 7),
        "cfloat8_1_4_3 decode": lambda: decode(codes, f143, 7),
        "cfloat8_1_4_3 round to nearest": lambda: round_to(x, f143, 7),
        "cfloat8_1_5_2 round to nearest": lambda: round_to(x, f152, 15),
        "cfloat16_shp round to nearest": lambda: round_to(x, shp, 15),
        "cfloat8_1_4_3 stochastic, bits given": lambda: round_to(x, f143, 7, random),
        "bf16 stochastic, bits given": lambda: round_to(x, bf16, None, random),
        "random bits": lambda: random_bits((n,), {}, Stream((n,)), 0),
        "random bits of a map of 32 columns": lambda: random_bits((n // 32, 32), {}, Stream((n // 32, 32)), 0),
    }


def measured(timed: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Best processor time of each case in seconds."""
    best = dict.fromkeys(timed, float("inf"))
    for _ in range(repeats):
        for name, call in timed.items():
            began = time.process_time()
            call()
            best[name] = min(best[name], time.process_time() - began)
    return best


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=1 << 20)
    parser.add_argument("--repeats", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = measured(cases(options.elements), options.repeats)
    print(f"| {options.elements:,} elements | ms | times the {REFERENCE} |\n|---|---|---|")
    for name, seconds in found.items():
        print(f"| {name} | {1e3 * seconds:.2f} | {seconds / found[REFERENCE]:.2f} |")


if __name__ == "__main__":
    main()
