"""What the panels show of the rounds of learning, worked out from their reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from napari_crfasrnn._qt.panels.state import RoundRow
from napari_crfasrnn._qt.state.lessons import share_done
from napari_crfasrnn.config import TrainConfig

if TYPE_CHECKING:
    from napari_crfasrnn._qt.state import Session
    from napari_crfasrnn.project import Round
    from napari_crfasrnn.training import TrainReport

ENDED = {
    "iterations": "all iterations were done",
    "time": "its time was over",
    "cancelled": "it was cancelled",
    "diverged": "the loss was no longer a number",
}
HARDLY = 0.05  # of a round
LEAST_AREAS = 5  # to say how many are recognised from the others
MOST_PLACES = 6  # of strokes that contradict the others
BARELY = 0.25  # of its steps: too few to judge it by what came of them


def round_rows(session: Session) -> tuple[RoundRow, ...]:
    """Return the rounds of the project, the latest first."""
    current, name_of = session.rounds.current, session.storage.keeper.name_of
    return tuple(_row(one, one.number == current, name_of) for one in reversed(session.rounds.all))


def was_cut_off(report: TrainReport) -> bool:
    """Return whether a round had no time for as many steps as it takes to judge it."""
    if report.stopped_by != "time" or not report.history:
        return False
    last = report.history[-1]
    return last.iteration < BARELY * min(last.total, TrainConfig().max_iterations)  # not more for more time


def describe(report: TrainReport) -> str:
    """Return in words what came of learning; the report of the round has the numbers of the field."""
    if report.stopped_by == "cancelled" and report.history:
        done = share_done(report.history[-1], report.config)
        when = "when it had hardly begun" if done < HARDLY else f"when {_percent(done)} was done"
        return f"Cancelled {when}: keep what was learnt so far, or discard it for the model from before."
    if was_cut_off(report):
        last = report.history[-1]
        return f"Its time was over after {last.iteration} of {last.total} steps."
    before, after = (None if score is None else score.miou for score in (report.before, report.after))
    if before is None or after is None:
        return "Too little was labelled to tell whether it is better: look at Compare."
    n_areas = report.n_locked_areas
    areas = f"{report.n_locked_pixels:,} px in {n_areas:,} area{'s' * (n_areas != 1)}"
    if not report.is_telling:
        known = _known_areas(report.strokes_known, report.strokes_asked)
        what = f"Learnt. Too few labels of yours are kept aside to tell how well ({areas})"
        return f"{what}. {known} Look at Compare." if known else f"{what}: look at Compare."
    old, new = _percent(before), _percent(after)
    said = (
        f"As good as before this round: {new} overlap"
        if old == new
        else f"{'Better' if after > before else 'Worse'}: {new} overlap, {old} before this round,"
    )
    return f"{said} with labels of yours kept aside as a check: {areas}."


def _known_areas(known: int, asked: int) -> str:
    """Return in a sentence what strokes teach of one another; nothing where they are too few to say."""
    if asked < LEAST_AREAS:
        return ""
    many = "all" if known == asked else known
    return f"Of {asked} areas you labelled, {many} are recognised from the others alone."


def _row(one: Round, in_use: bool, name_of: Callable[[int], str]) -> RoundRow:
    report = one.report
    before, after = report.get("before"), report.get("after")
    if report.get("stopped_by") == "cancelled":
        came = "cancelled"
    elif not report.get("is_telling", True):  # rounds of earlier versions do not say
        came = "too little kept aside to tell"
    else:
        came = _miou(before, after)
    created = datetime.fromisoformat(one.created).astimezone()
    return RoundRow(
        number=one.number,
        title=f"Round {one.number} · {came} · {created:%d %b %H:%M}",
        in_use=in_use,
        facts=(_origin(one), *_facts(report), *_doubts(report, name_of)),
        classes=_classes(before, after),
        history=tuple(
            (step["iteration"], float("nan") if step["loss"] is None else step["loss"], step["locked_miou"])
            for step in report.get("history", ())
        ),
    )


def _origin(one: Round) -> str:
    """Return what the round began with."""
    if one.parent:
        return f"It followed round {one.parent}."
    return (
        f"It began with the model {one.started_from!r}." if one.started_from else "It began without a round."
    )


def _miou(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> str:
    old, new = (None if score is None else score.get("miou") for score in (before, after))
    if old is None or new is None:
        return "too little labelled to tell"
    return f"overlap {_percent(old)} → {_percent(new)}"


def _facts(report: Mapping[str, Any]) -> tuple[str, ...]:
    facts = []
    if "n_planes" in report:
        n = report["n_planes"]
        facts.append(
            f"Learnt from {report['n_training_pixels']:,} px in {n} image{'s' * (n != 1)}; "
            f"{report['n_locked_pixels']:,} px were held back."
        )
    if "verdict" in report:  # rounds of earlier versions have none
        facts.append(report["verdict"])
    known = _known_areas(report.get("strokes_known", 0), report.get("strokes_asked", 0))
    facts += [known] if known else []
    if "stopped_by" in report:
        steps = len(report.get("history", ()))
        why = ENDED.get(report["stopped_by"], report["stopped_by"])
        facts.append(f"{steps} steps in {report['seconds']:.0f} s: {why}.")
    config = report.get("config", {})
    if config:
        limit = "no limit" if config["seconds"] is None else f"{config['seconds']:g} s"
        facts.append(
            f"Seed {config['seed']}, {limit}, at most {config['max_iterations']} iterations"
            f"{', encoder trained too' if config.get('thaw') else ''}."
        )
    facts += [f"{note[:1].upper()}{note[1:]}." for note in report.get("notes", ())]
    return tuple(facts)


def _doubts(report: Mapping[str, Any], name_of: Callable[[int], str]) -> tuple[str, ...]:
    """Return how many strokes contradict the others, and of the largest where they are."""
    places, after = report.get("contradictions", ()), report.get("after")
    if not places:
        return ()
    said = [contradicting([bool(place["region"].get("is_learnt")) for place in places])]
    for place in places[:MOST_PLACES]:
        region = place["region"]
        y0, x0, y1, x1 = region["box"]
        where = f"{name_of(place['item_id'])}, rows {y0} to {y1 - 1}, columns {x0} to {x1 - 1}"
        if place["index"]:
            where += f", slice {', '.join(str(i + 1) for i in place['index'])}"
        names = after["classes"] if after is not None else ()
        painted, seen = (
            names[value] if value < len(names) else f"class {value}"
            for value in (region["label"], region["predicted"])
        )
        how = "by the others" if region.get("is_learnt") else "still"
        said.append(f"– {where}: painted {painted}, {how} {seen} ({region['n_pixels']:,} px).")
    if len(places) > MOST_PLACES:
        said.append(f"– and {len(places) - MOST_PLACES} more.")
    return tuple(said)


def contradicting(are_learnt: Sequence[bool]) -> str:
    """Return in a sentence how many strokes contradict the others; those that a model could learn may."""
    may = sum(are_learnt)
    does = len(are_learnt) - may
    if not does:
        return f"{may} stroke{'s' * (may > 1)} may contradict the others."
    said = f"{does} stroke{'s contradict' if does > 1 else ' contradicts'} the others"
    return f"{said}, {may} more may." if may else f"{said}."


def _classes(
    before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
) -> tuple[tuple[str, str, str, str], ...]:
    if before is None or after is None:
        return ()
    old = dict(zip(before["classes"], before["iou"], strict=True))
    return tuple(
        (name, _iou(old.get(name)), _iou(iou), f"{pixels:,}")
        for name, iou, pixels in zip(after["classes"], after["iou"], after["n_pixels"], strict=True)
        if pixels
    )


def _iou(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
