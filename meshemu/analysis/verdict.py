"""What bounds the step, in words, with the numbers that say so."""

from collections.abc import Mapping
from typing import Any

from meshemu.units import format_time

__all__ = ["bound_by", "verdict"]

_PARTS = {
    "waiting_ps": "messages waiting for links in use",
    "serialisation_ps": "putting bytes on links",
    "latency_ps": "latency of links",
    "combine_ps": "combining received pieces",
    "ingest_ps": "input data on their way over PCIe and interface processors",
    "spill_ps": "data on their way to and from the memory of interface processors",
}
_BOUND_BY = {
    "waiting_ps": "contention on links",
    "serialisation_ps": "link bandwidth",
    "latency_ps": "link latency",
    "combine_ps": "the combinations in reductions",
    "ingest_ps": "ingest",
    "spill_ps": "spilling",
}
_OF_ROUTERS = {"waiting_ps": "messages waiting in routers and passing through them"}
_BOUND_BY_ROUTERS = {"waiting_ps": "contention and delay in routers"}


def verdict(content: Mapping[str, Any]) -> str:
    """Sentences from the values of `as_dict` (without its verdict)."""
    last, path = content["last_step"], content["critical_path"]
    if last is None:
        return "No step was completed, so nothing can be said about its time."
    sentences = [_incomplete(content)] if not content["complete"] else []
    if last["time_ps"] == 0:
        return " ".join([*sentences, "The step takes no virtual time: no op has a cost on this system."])
    known = path and path["total_ps"]
    if last["ingest_ps"]:
        sentences.append(_from_ingest(content))
    elif known:
        sentences.append(_from_path(content))
    if not known:
        sentences.append(_from_split(last))
    sentences.append(_compute(content))
    if content["busiest_links"]:
        link = content["busiest_links"][0]
        share = _percent(link["utilisation"])
        sentences.append(f"The busiest link ({link['name']}) is in use for {share} of the step.")
    return " ".join(sentences)


def bound_by(content: Mapping[str, Any]) -> str:
    """What takes the largest part of the critical path, in a few words, from the values of `as_dict`."""
    path = content["critical_path"]
    if not path or not path["total_ps"]:
        return "-"
    if path["compute_ps"] * 2 >= path["total_ps"]:
        return f"compute, most of it {next(iter(path['compute_ps_by_class']))}"
    return _largest(content)


def _largest(content: Mapping[str, Any]) -> str:
    """The largest part of the critical path but compute; of interface processors, with the unit that takes most."""
    path = content["critical_path"]
    words = _BOUND_BY | _BOUND_BY_ROUTERS if content["router"] is not None else _BOUND_BY
    part = max(words, key=lambda key: path[key])
    if part not in ("ingest_ps", "spill_ps"):
        return words[part]
    return f"{words[part]} ({next(iter(path['interface_ps_by_unit']))})"


def _parts(content: Mapping[str, Any]) -> str:
    """The parts of the critical path but compute, the largest first."""
    path = content["critical_path"]
    parts = _PARTS | _OF_ROUTERS if content["router"] is not None else _PARTS
    return ", ".join(
        f"{_percent(path[key] / path['total_ps'])} {text}"
        for key, text in sorted(parts.items(), key=lambda item: -path[item[0]])
        if path[key] > 0
    )


def _from_path(content: Mapping[str, Any]) -> str:
    """The larger of compute and communication on the critical path, and its largest part.

    Of compute, the op that takes most; of communication, the link, where one takes most of what links take.
    """
    path = content["critical_path"]
    total = path["total_ps"]
    if path["compute_ps"] * 2 >= total:
        name, longest = next(iter(path["compute_ps_by_class"].items()))
        return (
            f"Compute bounds the step: {_share(path['compute_ps'], total)} of its critical path is compute, "
            f"most of it {name} ({_share(longest, total)}){_longest_op(content)}."
        )
    return (
        f"Communication bounds the step, first of all {_one_link(content) or _largest(content)}. "
        f"{_share(path['communication_ps'], total)} of its critical path is communication: {_parts(content)}."
    )


def _one_link(content: Mapping[str, Any]) -> str:
    """The link that takes more than half of what serialisation and waiting take of the step, and that most of the
    communication; else "".
    """
    path = content["critical_path"]
    on_links = path["serialisation_ps"] + path["waiting_ps"]
    if not content["charged_links"] or 2 * on_links < path["communication_ps"]:
        return ""
    link = content["charged_links"][0]
    if 2 * link["charged_ps"] <= on_links:
        return ""
    share = _share(link["charged_ps"], path["total_ps"])
    return f"one link, {link['name']} ({link['class']}), which alone takes {share}"


def _longest_op(content: Mapping[str, Any]) -> str:
    """The op that takes most of the compute, by its label; "" where that is not known."""
    op = content["longest_op"]
    return f", first of all {op['label']} ({format_time(op['path_ps'])})" if op and op["label"] else ""


def _from_ingest(content: Mapping[str, Any]) -> str:
    """That the step waits for data, before all else, since nothing else makes it shorter; and for which unit most."""
    last, path = content["last_step"], content["critical_path"]
    waits = f"{_share(last['ingest_ps'], last['time_ps'])} of the step is waiting for the batch of the next one."
    if not path or not path["ingest_ps"]:
        return f"Ingest bounds the step: {waits}"
    unit, taken_ps = next(iter(path["interface_ps_by_unit"].items()))
    return (
        f"Ingest bounds the step: {unit}, {format_time(taken_ps)} of {format_time(path['total_ps'])}. {waits} Its "
        f"critical path is {_parts(content)}."
    )


def _from_split(last: Mapping[str, Any]) -> str:
    """Without op times: compute of the busiest device against the rest."""
    total, exposed = last["time_ps"], last["exposed_comm_ps"]
    side = "Communication" if exposed * 2 > total else "Compute"
    return f"{side} bounds the step: {_share(exposed, total)} of it is communication that no compute hides."


def _compute(content: Mapping[str, Any]) -> str:
    last, rate = content["last_step"], content["compute_rate"]
    busiest = f"The busiest device computes for {_percent(last['compute_ps'] / last['time_ps'])} of the step"
    if rate["fraction_of_peak"] is None:
        return f"{busiest}."
    return f"{busiest}; all together reach {_percent(rate['fraction_of_peak'])} of the peak compute rate."


def _incomplete(content: Mapping[str, Any]) -> str:
    return f"The run is not complete: {content['steps_done']} of {content['steps_planned']} steps are recorded."


def _share(part_ps: int, total_ps: int) -> str:
    return f"{_percent(part_ps / total_ps)} ({format_time(part_ps)})"


def _percent(fraction: float) -> str:
    """Three digits at most, never "0 %" for what is there."""
    percent = 100 * fraction
    if 0 < percent < 0.01:
        return "under 0.01 %"
    return f"{percent:.{0 if percent >= 99.95 or percent == 0 else 1 if percent >= 1 else 2}f} %"
