"""What the panels show, worked out from a workbench. Nothing is changed here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from napari_crfasrnn._qt.layers import drawn_color, key_of, plane_index
from napari_crfasrnn._qt.panels.state import (
    TIMES,
    Action,
    ClassesState,
    ClassRow,
    CorrectState,
    Cure,
    LearnState,
    Message,
    Progress,
    ProjectState,
    StartState,
)
from napari_crfasrnn._qt.rounds import contradicting, describe, round_rows, was_cut_off
from napari_crfasrnn._qt.state.shelf import PREFIX
from napari_crfasrnn._qt.state.telling import FITTING, KNOWS_NONE, TO_PAINT, USE

if TYPE_CHECKING:
    from napari_crfasrnn._qt.state import Busy, Numbers, Session
    from napari_crfasrnn._qt.workbench import Workbench
    from napari_crfasrnn.training import PlaceOfContradiction, TrainReport, TrainStep

NEW_PROJECT = Cure(
    "new-project", "New project", "Begin another project with the model's classes; this one is kept"
)
CURES = {
    "segment": Cure("segment", "Segment"),
    "end-comparing": Cure("end-comparing", "Back"),
    "next-doubt": Cure("next-doubt", "Next", "Go to the next stroke that contradicts the others"),
    "end-doubts": Cure("end-doubts", "Back", "Take the frame away"),
    "bring-back": Cure("bring-back", "Show them"),
    "open-model": Cure("open-model", "Open…"),
    "download": Cure("download", "Accept and download"),
    "import-report": Cure("import-report", "Report…"),
    "own-classes": Cure(
        "own-classes",
        "My classes…",
        "Name classes of your own instead of the model's, paint a little of each, and let it learn them",
    ),
    **{
        f"{USE}{name}": Cure(f"{USE}{name}", text, f"Segment again with the model “{name}”")
        for models in FITTING.values()
        for name, text in models.items()
    },
}
KEEP_ROUND, DISCARD_ROUND = "keep-round:", "discard-round:"  # of an earlier session: its number follows
COMPARE_ROUND = "compare-round:"  # likewise, with the model that it began with
LEARN_FOR = "learn-for:"  # the cure that learns anew with another time limit: its seconds follow
STILL_EARLIER = "The labels are still the earlier model's."
NOT_KEPT = "Segment again for squares to correct and the uncertainty: they are not kept in a project."
NO_IMAGE = "Open an image first."
SHOW_DOUBT = Cure("next-doubt", "Show", "Go to the first of them; the image is brought into view")
MOSTLY = 0.5  # of a slice's pixels have labels: a model gave them, in an earlier session
MAX_REMARKS = 2  # on a round of learning; there is room for no more
DOING = {
    "segment": "the image is being segmented",
    "refine": "the labels are being refined",
    "learn": "the model is learning",
    "compare": "two models are being compared",
    "open": "a project is being opened",
    "save": "something is being saved",
    "export": "a training set is being written",
    "load": "a model is being read",
}


def start_state(bench: Workbench) -> StartState:
    """Return what the first panel shows."""
    session = bench.session
    images = [(key_of(layer), layer.name) for layer in bench.order.layers()]
    busy = session.busy
    shape = _stack_shape(bench)
    models = tuple((c.name, c.title, c.problem or "") for c in session.shelf.models)
    return StartState(
        images=tuple(images),
        image=bench.key,
        models=models,
        model=session.shelf.choice.name if session.shelf.choice else None,
        loading=session.shelf.loading,
        segment=_segment_action(bench),
        segment_text="Segment again" if _is_segmented(bench) and not session.table.is_unknown else "Segment",
        slice_text=_slice_text(bench, shape) if shape else None,
        all_slices=bench.all_slices,
        channels=bench.first_is_channels,
        draw=_draw_action(bench),
        drawing=bench.boxes.drawing is not None,
        box_layers=tuple((layer.name, layer.name) for layer in bench.boxes.offered),
        box_layer="" if bench.boxes.chosen is None else bench.boxes.chosen.name,
        score=bench.boxes.score,
        progress=_progress(busy, "segment", "load"),
        message=_start_message(bench),
    )


def classes_state(bench: Workbench) -> ClassesState:
    """Return the class table as it is shown: classes with keys first, then those present, then the rest."""
    session, group, numbers = bench.session, bench.group, _numbers(bench)
    table = session.table
    rows = []
    for value, spec in enumerate(table.classes):
        share = numbers.shares[value] if numbers is not None and value < len(numbers.shares) else None
        rows.append(
            ClassRow(
                value=value,
                name=spec.name,
                color=drawn_color(value, spec.color),
                key=0 if value == 0 else table.key_of(value),
                share=share,
                visible=group is None or value not in group.hidden,
                present=share is None or share > 0,
            )
        )
    rows.sort(key=lambda row: (10 if row.key == 0 else 99 if row.key is None else row.key, row.value))
    why = _busy_reason(session)
    if not table.classes:
        why = why or _no_model(session)
    return ClassesState(
        rows=tuple(rows),
        painting=bench.painting,
        per_class=bench.labelling.per_class,
        edit=Action(not why, why),
        message=_message(session, "classes"),
    )


def correct_state(bench: Workbench) -> CorrectState:
    """Return what was corrected, and what helps to correct."""
    session, work, numbers = bench.session, bench.work, _numbers(bench)
    nothing = "" if bench.group is not None else "Segment the image first."
    busy = _busy_reason(session)
    no_model = _no_model(session)
    missing = "" if _is_segmented(bench) else "Segment the image first."
    if missing and session.table.is_unknown:
        missing = KNOWS_NONE
    return CorrectState(
        patch=Action(
            not missing, missing if bench.image is not None else NO_IMAGE, primary=_lead(bench) == "patch"
        ),
        in_patch=bench.patching.patch is not None,
        live=bench.live.on,
        live_waits=bench.live.is_getting_ready,
        refine=Action(not (nothing or busy or no_model), nothing or busy or no_model),
        accept=Action(not nothing, nothing),
        accepted=work is not None and work.is_accepted(bench.chosen_slices),
        accepts_all=work is not None and bench.all_slices and bool(work.image.stack_shape),
        numbers=_edits(numbers) if numbers is not None and bench.group is not None else "",
        uncertainty=Action(not missing and bench.group is not None, missing or nothing),
        uncertainty_on=bench.uncertainty_on,
        before=Action(
            bench.group is not None and work is not None and work.before_crf is not None,
            missing or nothing or "No network has labelled it yet: let the model learn, and segment.",
        ),
        before_on=bench.before_on,
        progress=_progress(session.busy, "refine"),
        message=_correct_message(bench, numbers),
    )


def learn_state(bench: Workbench) -> LearnState:
    """Return what there is to learn from, or what came of learning."""
    session = bench.session
    known = [numbers.summary.n_labelled for numbers in session.numbers.values()]
    n_known, n_images = sum(known), sum(1 for n in known if n)
    why = _busy_reason(session)
    if not n_known:
        why = "Correct something first: paint what is wrong, or accept an image that is right."
    elif session.lessons.report is not None:
        why = "Keep or discard what was learnt first."
    material = f"{n_known:,} px in {n_images} image{'s' * (n_images != 1)}" if n_known else ""
    learning = session.busy is not None and session.busy.what == "learn"
    busy = _busy_reason(session)
    if not busy and session.lessons.report is not None:
        busy = "Keep or discard what was learnt first."
    return LearnState(
        learn=Action(not why, why, primary=not why and _lead(bench) == "learn"),
        material="" if learning or session.lessons.report is not None else material,
        result=_result(session),
        progress=_progress(session.busy, "learn", "compare"),
        show_plot=_shows_plot(bench),
        compare=_compare_action(bench),
        rounds=round_rows(session),
        choose_round=Action(not busy, busy),
        seconds=session.effort.seconds,
        thaw=session.effort.thaw,
        message=_lesson_message(bench),
    )


def history(bench: Workbench) -> list[TrainStep]:
    """Return the steps to plot; of a round with too few labels kept aside to tell, without their overlap."""
    lessons = bench.session.lessons
    if lessons.report is None or lessons.report.is_telling:
        return lessons.history
    return [replace(step, locked_miou=None) for step in lessons.history]


def project_state(bench: Workbench) -> ProjectState:
    """Return where the work is kept."""
    session, keeper = bench.session, bench.session.storage.keeper
    busy = _busy_reason(session)
    n_images = keeper.n_images
    named = keeper.path is not None and keeper.is_named
    images = f"{n_images} image{'s' * (n_images != 1)}"
    if named and keeper.path is not None:
        title, kept = f"Project: {keeper.path.name}", "saved as you go"
    else:
        title, kept = "Project", "kept automatically"
    if keeper.is_read_only or session.storage.fails:
        kept = "read-only" if keeper.is_read_only else "not saved"
    summary = f"{images}, {kept}" if named or n_images else ""
    nothing = "" if n_images or session.works else "There is nothing to save yet."
    nothing_out = "There is nothing to export yet." if nothing else ""
    empty = "This project is new." if nothing and not session.rounds.all and not session.table.edited else ""
    no_model = _no_model(session)
    return ProjectState(
        title=title,
        summary=summary,
        recents=tuple(
            (str(recent.path), f"{recent.title}  ·  {recent.modified:%d %b %H:%M}")
            for recent in session.storage.recents
        ),
        left=tuple((item.id, item.name) for item in bench.projects.closed_items),
        new=Action(not (empty or busy), empty or busy),
        save=Action(not (nothing or busy), nothing or busy),
        save_model=Action(not (no_model or busy), no_model or busy),
        export=Action(not (nothing_out or busy), nothing_out or busy),
        open=Action(not busy, busy),
        progress=_progress(session.busy, "open", "export"),
        message=_message(session, "project"),
    )


def _segment_action(bench: Workbench) -> Action:
    session = bench.session
    why = _busy_reason(session)
    if bench.image is None:
        why = NO_IMAGE
    elif session.table.is_unknown:
        why = why or KNOWS_NONE
    elif not session.shelf.loading:  # else pressing it waits for the models
        why = why or _no_model(session)
    return Action(not why, why, primary=not why and _lead(bench) == "segment")


def _draw_action(bench: Workbench) -> Action:
    why = NO_IMAGE if bench.image is None else ""
    if not why and not bench.session.table.classes:
        why = _no_model(bench.session)
    return Action(not why, why)


def _lead(bench: Workbench) -> str:
    """Return what comes next: "segment", "patch" (in a patch, "approve"), "learn", or "" for painting."""
    session = bench.session
    if bench.patching.patch is not None:
        return "approve"
    has_news = any(numbers.n_new > 0 for numbers in session.numbers.values())
    if session.table.is_unknown:  # to such a model all is uncertain, which says nothing
        return "learn" if has_news else ""
    if session.lessons.report is not None or not _is_segmented(bench) or _is_of_another_model(bench):
        return "segment"
    if has_news:
        return "learn"
    return "patch"


def _no_model(session: Session) -> str:
    if session.shelf.choice is not None:
        return ""
    return "Wait: the models are being looked for." if session.shelf.loading else "Choose a model first."


def _busy_reason(session: Session) -> str:
    if session.busy is None:
        return ""
    return f"Wait: {DOING.get(session.busy.what, session.busy.text)}."


def _progress(busy: Busy | None, *which: str) -> Progress | None:
    if busy is None or busy.what not in which:
        return None
    return Progress(busy.text, busy.done, busy.total)


def _message(session: Session, section: str) -> Message:
    line = session.tasks.lines.get(section)
    if line is None:
        return Message()
    return Message(line.text, line.tone, tuple(CURES[cure] for cure in line.cures))


def _compare_action(bench: Workbench) -> Action:
    why = _busy_reason(bench.session)
    if bench.image is None:
        why = NO_IMAGE
    elif bench.session.lessons.before is None:
        why = why or "There is no model from before."
    return Action(not why, why)


def _shows_plot(bench: Workbench) -> bool:
    session = bench.session
    if len(session.lessons.history) < 2:
        return False
    if session.busy is not None and session.busy.what == "learn":
        return True
    report = session.lessons.report
    if report is None or "learn" in session.tasks.lines:  # what is said of a comparison takes its room
        return False
    return not _remark(report, bench.doubts.places)  # so does a remark


def _start_message(bench: Workbench) -> Message:
    """Return what the section has to say, or else that the labels are not of the chosen model."""
    said = _message(bench.session, "start")
    if not said.text and bench.session.busy is None and bench.session.table.is_unknown:
        return _foreign_model(bench.session)
    if said.text or bench.session.busy is not None or not _is_of_another_model(bench):
        return said
    is_said = STILL_EARLIER in _lesson_message(bench).text
    return Message("" if is_said else STILL_EARLIER)


def _correct_message(bench: Workbench, numbers: Numbers | None) -> Message:
    """Return what the section has to say, or else why most of it is grey where there are labels."""
    said, session = _message(bench.session, "correct"), bench.session
    is_grey = bench.group is not None and not _is_segmented(bench) and not session.table.is_unknown
    if said.text or session.busy is not None or not is_grey or numbers is None:
        return said
    return Message(NOT_KEPT) if sum(numbers.shares) > MOSTLY else said


def _foreign_model(session: Session) -> Message:
    """Return what to do where the chosen model knows no class of the project, but for a project that begins.

    In one that begins, the first round of learning makes the model.
    """
    current = session.rounds.current
    if not session.rounds.all and session.table.edited:
        is_said = _message(session, "classes").text in TO_PAINT
        return Message("" if is_said else KNOWS_NONE)
    name = f"{PREFIX}{current}"
    cures = [NEW_PROJECT]
    if current and session.shelf.choice is not None and session.shelf.choice.name != name:
        cures.insert(0, Cure(f"{USE}{name}", f"Round {current}", "Use that model, and segment with it"))
    return Message("This model knows none of your classes.", "problem", tuple(cures))


def _lesson_message(bench: Workbench) -> Message:
    """Return what the section has to say, or else what the round of learning has to remark."""
    said, report = _message(bench.session, "learn"), bench.session.lessons.report
    choice = bench.session.shelf.choice
    is_round = choice is not None and choice.name.startswith(PREFIX)
    if said.tone == "good" and is_round and bench.session.busy is None and _is_of_another_model(bench):
        again = Cure("segment", "Segment again", "Segment the image with the chosen model (S)")
        return Message(f"{said.text} {STILL_EARLIER}", said.tone, (again,))
    number = bench.session.rounds.undecided
    if number and not said.text and report is None:  # of an earlier session: nothing else waits for an answer
        return _undecided(bench, number)
    if said.text or report is None:
        return said
    doubts = bench.doubts.places
    remark = _remark(report, doubts)
    shows = bool(remark and doubts) and not _busy_reason(bench.session)
    return Message(remark, cures=(SHOW_DOUBT,) if shows else ())


def _undecided(bench: Workbench, number: int) -> Message:
    """Ask what shall become of a round of an earlier session, and tell what was to be told of it."""
    session = bench.session
    one = session.rounds.get(number)
    places = one.report.get("contradictions", ()) if one is not None else ()
    text = f"Round {number} was neither kept nor discarded."
    if places:
        doubts = contradicting([bool(place["region"].get("is_learnt")) for place in places])
        text += f" {doubts} Its report in the list of rounds says where."
    if _busy_reason(session):
        return Message(text)
    cures = [
        Cure(f"{KEEP_ROUND}{number}", "Keep", "Use the model of that round from now on"),
        Cure(f"{DISCARD_ROUND}{number}", "Discard", "Remove that round and its model"),
    ]
    if bench.image is not None and session.shelf.get(session.rounds.model_before(number)) is not None:
        tip = "Show what the model from before and that of the round make of the slice, side by side"
        cures.append(Cure(f"{COMPARE_ROUND}{number}", "Compare", tip))
    return Message(text, cures=tuple(cures))


def _result(session: Session) -> Message:
    """Return what came of the round that waits for a decision; one that was cut off may have more time."""
    report = session.lessons.report
    if report is None:
        return Message()
    longer = next((seconds for seconds in TIMES if seconds > session.effort.seconds), None)
    cures: tuple[Cure, ...] = ()
    if was_cut_off(report) and longer is not None and not _busy_reason(session):
        tip = "Drop what was learnt in the short time, and learn anew"
        cures = (Cure(f"{LEARN_FOR}{longer:g}", f"Learn for {TIMES[longer]}", tip),)
    return Message(describe(report), "plain", cures)


def _remark(report: TrainReport, doubts: Sequence[PlaceOfContradiction]) -> str:
    """Return what else a round of learning has to say, in a sentence or two; nothing where it was cut off."""
    if was_cut_off(report):
        return ""
    said = [contradicting([place.region.is_learnt for place in doubts])] if doubts else []
    said += [f"{note[:1].upper()}{note[1:]}." for note in report.notes]
    return " ".join(said[:MAX_REMARKS])


def _numbers(bench: Workbench) -> Numbers | None:
    return bench.session.numbers.get(bench.key or "")


def _is_segmented(bench: Workbench) -> bool:
    return bench.work is not None and bench.work.entropy is not None


def _is_of_another_model(bench: Workbench) -> bool:
    """Return whether the labels that are shown are known to come from a model that is not the chosen one."""
    session = bench.session
    if bench.key is None or session.shelf.choice is None or not _is_segmented(bench):
        return False
    model = session.standing.model_of(bench.key, bench.index)
    return model is not None and model != session.shelf.choice.name


def _edits(numbers: Numbers) -> str:
    summary = numbers.summary
    if numbers.n_learnt:
        new = f"{numbers.n_new:,} px new" if numbers.n_new else "nothing new"
        return f"{numbers.n_learnt:,} px learnt · {new}"
    if not summary.n_edited and not summary.n_verified:
        return "nothing edited yet"
    share = 100 * summary.verified_share
    verified = f"{share:.0f} %" if share >= 1 or share == 0 else "< 1 %"
    if not summary.n_edited:  # a segmentation has taken what was edited before it for verified
        return f"{summary.n_verified:,} px verified ({verified})"
    return f"{summary.n_edited:,} px edited · {verified} verified"


def _stack_shape(bench: Workbench) -> Sequence[int]:
    if bench.image is None:
        return ()
    try:
        return bench.read_image().stack_shape
    except ValueError:
        return ()


def _slice_text(bench: Workbench, shape: Sequence[int]) -> str:
    index = plane_index(bench.viewer, bench.image, shape)
    places = ", ".join(str(i + 1) for i in index)
    return f"slice {places} of {', '.join(str(size) for size in shape)}"
