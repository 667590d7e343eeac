"""Subcommands that study: validate (published figures, this machine), calibrate, compare-systems, whatif."""

import argparse
from pathlib import Path

from meshemu.cli.commands import Commands, add_jobs, add_outputs, add_settings, comm_of, write_study
from meshemu.errors import InputError
from meshemu.runtime.launch import Launch

__all__ = ["register"]


def register(commands: Commands) -> None:
    """Add validate, calibrate, compare-systems and whatif."""
    about = "print published figures beside the model's; exit code 1 if exact ones differ"
    published = commands.add("validate", _validate, about, parallel=True)
    published.add_argument("--json", action="store_true", help="as JSON")
    add_settings(published, "change a figure of every system that has it, as system.KEY=VALUE")
    about = "predict steps of plain PyTorch on this machine (1 or 2 ranks) from measured operators, and measure them"
    published.add_argument("--this-machine", action="store_true", help=about)
    about = "with --this-machine, the table of `meshemu calibrate`; without, operators are measured with each step"
    published.add_argument("--calibration", type=Path, metavar="FILE.csv", help=about)
    published.add_argument("--quick", action="store_true", help="with --this-machine, measure a tenth as long")
    about = "measure operators of training steps on this machine and, on two ranks, messages, for timing.calibration"
    measured = commands.add("calibrate", _calibrate, about, parallel=True)
    measured.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.csv")
    measured.add_argument("--quick", action="store_true", help="measure a tenth as long")
    about = "time one step of a model on several systems, in one table"
    machines = commands.add("compare-systems", _compare_systems, about)
    machines.add_argument("config", type=Path, metavar="CONFIG.toml")
    machines.add_argument("--systems", nargs="+", required=True, metavar="NAME", help="presets (meshemu systems)")
    plans = "the plan on every system, or config for that of the file (default: %(default)s)"
    machines.add_argument("--plan", default="auto", metavar="NAME", help=plans)
    add_settings(machines)
    form = machines.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as JSON")
    form.add_argument("--csv", action="store_true", help="as CSV")
    about = "scale each hardware parameter of a stored run, and rank them by what they do to its step"
    scaled = commands.add("whatif", _whatif, about)
    scaled.add_argument("file", type=Path, metavar="RUN.h5")
    factors = "factors that each parameter is multiplied by (default: 2 0.5)"
    scaled.add_argument("--scale", type=float, nargs="+", metavar="FACTOR", help=factors)
    scaled.add_argument("--parameters", nargs="+", metavar="NAME", help="only these parameters")
    scaled.add_argument("--pairs", action="store_true", help="also two at a time")
    add_outputs(scaled, "whatif.txt, .json, .csv and tornado.png")
    add_jobs(scaled)


def _validate(arguments: argparse.Namespace, launch: Launch) -> int:
    if arguments.this_machine:
        return _this_machine(arguments, launch)
    if arguments.calibration is not None or arguments.quick:
        raise InputError("--calibration and --quick go with --this-machine")
    if launch.rank > 0:
        return 0
    from meshemu.study import validate

    rows = validate.validate(arguments.set)
    print(validate.to_json(rows) if arguments.json else validate.render(rows))
    return 1 if any(row.agrees is False for row in rows) else 0


def _this_machine(arguments: argparse.Namespace, launch: Launch) -> int:
    if arguments.set:
        raise InputError("--this-machine measures a machine: it takes no --set")
    from meshemu.cost import read_calibration
    from meshemu.study import calibrate, this_machine

    comm = comm_of(launch)
    budget = calibrate.Budget.quick() if arguments.quick else calibrate.Budget()
    table = None if arguments.calibration is None else read_calibration(arguments.calibration)
    rows = this_machine.this_machine(table, budget, comm)
    if launch.rank == 0:
        origin = "measured in turns with each step" if table is None else str(table)
        print(this_machine.to_json(rows) if arguments.json else this_machine.render(rows, origin))
    return 0


def _calibrate(arguments: argparse.Namespace, launch: Launch) -> int:
    from meshemu.cost import write_calibration
    from meshemu.emulator.root import on_root
    from meshemu.study import calibrate, this_machine

    comm, output = comm_of(launch), arguments.output

    def reserve() -> None:
        if output.exists():
            raise InputError(f"-o {output}: there is such a file already")
        write_calibration(output, ())

    on_root(comm, reserve)
    budget = calibrate.Budget.quick() if arguments.quick else calibrate.Budget()
    rows = calibrate.calibrate(budget, comm, this_machine.needed(comm))
    if launch.rank == 0:
        write_calibration(output, rows)
        print(f"{output}: {len(rows)} rows")
    return 0


def _compare_systems(arguments: argparse.Namespace, _launch: Launch) -> int:
    from meshemu.study import compare_systems

    plan = None if arguments.plan == "config" else arguments.plan
    rows = compare_systems.compare_systems(arguments.config, arguments.systems, overrides=arguments.set, plan=plan)
    if arguments.json or arguments.csv:
        print(compare_systems.to_json(rows) if arguments.json else compare_systems.to_csv(rows))
    else:
        print(compare_systems.render(rows, str(arguments.config)))
    return 0


def _whatif(arguments: argparse.Namespace, _launch: Launch) -> int:
    from meshemu.study import whatif, whatif_report

    scales = arguments.scale or whatif.SCALES
    names, jobs = arguments.parameters, arguments.jobs
    found = whatif.whatif(arguments.file, scales=scales, names=names, pairs=arguments.pairs, jobs=jobs)
    write_study(arguments, found, whatif_report)
    return 0
