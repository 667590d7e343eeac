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
}
_BOUND_BY = {
    "waiting_ps": "contention on links",
    "serialisation_ps": "link bandwidth",
    "latency_ps": "link latency",
    "combine_ps": "the combinations in reductions",
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
    if last["ingest_ps"]:
        sentences.append(_from_ingest(last))
    routers = content["router"] is not None
    sentences.append(_from_path(content, routers) if path and path["total_ps"] else _from_split(last))
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
    words = _BOUND_BY | _BOUND_BY_ROUTERS if content["router"] is not None else _BOUND_BY
    return words[max(words, key=lambda key: path[key])]


def _from_path(content: Mapping[str, Any], routers: bool) -> str:
    """The larger of compute and communication on the critical path, and its largest part; routers: it passed some.

    Of compute, the op that takes most; of communication, the link, where one takes most of what links take.
    """
    path = content["critical_path"]
    parts = _PARTS | _OF_ROUTERS if routers else _PARTS
    bound_by = _BOUND_BY | _BOUND_BY_ROUTERS if routers else _BOUND_BY
    total = path["total_ps"]
    if path["compute_ps"] * 2 >= total:
        name, longest = next(iter(path["compute_ps_by_class"].items()))
        return (
            f"Compute bounds the step: {_share(path['compute_ps'], total)} of its critical path is compute, "
            f"most of it {name} ({_share(longest, total)}){_longest_op(content)}."
        )
    part = max(parts, key=lambda key: path[key])
    words = ", ".join(
        f"{_percent(path[key] / total)} {text}"
        for key, text in sorted(parts.items(), key=lambda item: -path[item[0]])
        if path[key] > 0
    )
    return (
        f"Communication bounds the step, first of all {_one_link(content) or bound_by[part]}. "
        f"{_share(path['communication_ps'], total)} of its critical path is communication: {words}."
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


def _from_ingest(last: Mapping[str, Any]) -> str:
    """That the step waits for data, before all else: no other change makes it shorter."""
    share = _share(last["ingest_ps"], last["time_ps"])
    return (
        f"Input data bounds the step: {share} of it is waiting for the batch of the next one, which comes in over PCIe "
        "and interface processors; the critical path counts that as messages waiting."
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
