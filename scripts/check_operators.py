"""Check sharding rules on many more cuts than the tests do: python scripts/check_operators.py [PATTERN] [--help].

Takes the samples of the tests, or those of PyTorch's own tests (--pytorch, which needs the package expecttest), records
the ATen calls of each and its backward, lays their tensors out in many ways, and compares with the plain calls.
Prints what is wrong, what is refused and how often each operator gathers.
"""

import argparse
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / part) for part in ("tests", ".")]

from operator_samples import SAMPLES  # noqa: E402
from operators_under_test import Call, assert_same_call, calls_of, describe, layouts_of, plan_of, single_cuts  # noqa: E402
from torch.utils import _pytree as pytree  # noqa: E402

from meshemu.errors import UnsupportedOpError  # noqa: E402


def pytorch_samples(pattern: str, per_operator: int) -> Iterator[tuple[str, Any, list[torch.Tensor]]]:
    """(name, function of tensors, tensors) from the operator database of PyTorch's tests."""
    from torch.testing._internal.common_methods_invocations import op_db

    for operator in op_db:
        if pattern not in operator.name or torch.float64 not in operator.dtypes:
            continue
        samples = list(operator.sample_inputs("cpu", torch.float64, requires_grad=False))
        random.Random(0).shuffle(samples)
        for sample in samples[:per_operator]:
            leaves, spec = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
            tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

            def function(*given: torch.Tensor, leaves: Any = leaves, spec: Any = spec, operator: Any = operator) -> Any:
                rest = iter(given)
                filled = [next(rest) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
                first, args, kwargs = pytree.tree_unflatten(filled, spec)
                return operator.op(first, *args, **kwargs)

            if tensors and sum(t.numel() for t in tensors) < 20_000:
                yield operator.name, function, tensors


def calls(options: argparse.Namespace) -> Iterator[tuple[str, Call]]:
    """(sample, call) for every distinct call that may be repeated."""
    seen: set[str] = set()
    if options.pytorch:
        samples: Any = pytorch_samples(options.pattern, options.samples)
    else:
        samples = ((name, *sample) for name, sample in SAMPLES.items() if options.pattern in name)
    for name, function, tensors in samples:
        try:
            found = calls_of(function, *tensors)
        except Exception as error:  # what PyTorch itself cannot trace is no question of cuts
            print(f"{name}: not traced ({type(error).__name__})")
            continue
        for call in found:
            drawn = torch.Tag.nondeterministic_seeded in call.target.tags and "scaled_dot" not in str(call.target)
            if call.tensors and not drawn and str(call) not in seen:
                seen.add(str(call))
                yield name, call


def main() -> int:
    """Exit code 1 if a cut call differs from the plain one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pattern", nargs="?", default="", help="part of the names of samples")
    parser.add_argument("--pytorch", action="store_true", help="samples of PyTorch's own tests")
    parser.add_argument("--samples", type=int, default=2, help="of PyTorch's samples, so many an operator")
    parser.add_argument("--single", type=int, default=4, help="cuts of one dim over one axis, a call and plan")
    parser.add_argument("--random", type=int, default=3, help="random layouts, a call and plan")
    parser.add_argument("--seconds", type=float, default=600, help="stop after this long")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    plans = [plan_of(2), plan_of(3), plan_of(2, 3), plan_of(2, 2)]
    runs, gathers, wrong, refused = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    start = time.perf_counter()
    for name, call in calls(options):
        if time.perf_counter() - start > options.seconds:
            print("out of time")
            break
        operator = str(call.target)
        for plan in plans:
            cuts = list(single_cuts(call, plan))
            random.Random(str(call)).shuffle(cuts)
            for layouts in [*cuts[: options.single], *layouts_of(call, plan, options.random, 0)]:
                runs[operator] += 1
                try:
                    gathers[operator] += bool(assert_same_call(call, layouts, plan).gathers)
                except UnsupportedOpError:
                    refused[operator] += 1
                except Exception as error:
                    if not wrong[operator]:
                        where = [describe(layout) for layout in layouts]
                        print(f"WRONG [{name}] {call} cut as {where}: {type(error).__name__} {str(error)[:400]}")
                    wrong[operator] += 1
    print(f"{sum(runs.values())} runs of {len(runs)} operators, {sum(wrong.values())} wrong: {dict(wrong)}")
    print(f"refused: {dict(refused)}")
    print("gathers:", {operator: f"{count} of {runs[operator]}" for operator, count in gathers.items() if count})
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
