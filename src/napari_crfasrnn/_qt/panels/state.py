"""What the panels show. They hold nothing else: each gets one of these values and draws it."""

from __future__ import annotations

from dataclasses import dataclass

from napari_crfasrnn.palette import Color

TIMES = {20.0: "20 s", 60.0: "1 min", 300.0: "5 min"}
"""How long a round of learning may be asked to take: seconds, and how they are written."""


@dataclass(frozen=True)
class Cure:
    """A button beside a sentence: the name of its action, what is on it, and what more there is to say."""

    name: str
    text: str
    tip: str = ""


@dataclass(frozen=True)
class Message:
    """A sentence in a section, with buttons that cure what it tells of."""

    text: str = ""
    tone: str = "quiet"  # or "good", "problem"
    cures: tuple[Cure, ...] = ()


@dataclass(frozen=True)
class Progress:
    """How far a task is; ``total`` 0 means that nobody knows."""

    text: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class Action:
    """A button: whether it can be pressed, why not, and whether it is the one to press next."""

    enabled: bool = True
    why_not: str = ""
    primary: bool = False


@dataclass(frozen=True)
class StartState:
    """Image, model, and the button that segments."""

    images: tuple[tuple[str, str], ...] = ()  # key, name
    image: str | None = None
    models: tuple[tuple[str, str, str], ...] = ()  # name, title, why it cannot be used
    model: str | None = None
    loading: bool = False  # it is still being found out which models there are
    segment: Action = Action()
    segment_text: str = "Segment"
    slice_text: str | None = None  # None where there is one slice
    all_slices: bool = False
    channels: bool | None = None  # None where nobody has to say
    draw: Action = Action()  # boxes
    drawing: bool = False
    box_layers: tuple[tuple[str, str], ...] = ()  # name, text
    box_layer: str = ""  # "" for none
    score: float | None = None  # of the next box, or of those that are selected
    progress: Progress | None = None
    message: Message = Message()


@dataclass(frozen=True)
class ClassRow:
    """One class of the table; its share is None as long as there are no labels."""

    value: int
    name: str
    color: Color
    key: int | None
    share: float | None
    visible: bool
    present: bool


@dataclass(frozen=True)
class ClassesState:
    """The class table."""

    rows: tuple[ClassRow, ...] = ()
    painting: int | None = None
    per_class: bool = True
    edit: Action = Action()
    message: Message = Message()


@dataclass(frozen=True)
class CorrectState:
    """What was corrected, and what helps to correct."""

    patch: Action = Action()
    in_patch: bool = False  # a square is framed
    live: bool = True
    live_waits: bool = False  # it is being made ready
    refine: Action = Action()
    accept: Action = Action()
    accepted: bool = False
    accepts_all: bool = False  # slices
    numbers: str = ""
    uncertainty: Action = Action()
    uncertainty_on: bool = False
    before: Action = Action()
    before_on: bool = False
    progress: Progress | None = None
    message: Message = Message()


@dataclass(frozen=True)
class RoundRow:
    """A round of learning, in words; ``history`` is (iteration, loss, IoU or None) of its steps."""

    number: int
    title: str
    in_use: bool
    facts: tuple[str, ...] = ()
    classes: tuple[tuple[str, str, str, str], ...] = ()  # name, IoU before, after, held-back pixels
    history: tuple[tuple[int, float, float | None], ...] = ()


@dataclass(frozen=True)
class LearnState:
    """Learning, and what came of it."""

    learn: Action = Action()
    material: str = ""
    result: Message = Message()  # of a round that waits for a decision
    progress: Progress | None = None
    show_plot: bool = False
    compare: Action = Action()  # what was just learnt with the model from before
    rounds: tuple[RoundRow, ...] = ()  # the latest first
    choose_round: Action = Action()
    seconds: float = 20.0  # that a round may take
    thaw: bool = False  # whether it trains the encoder, too
    message: Message = Message()


@dataclass(frozen=True)
class ProjectState:
    """The project on the disk."""

    title: str = "Project"
    summary: str = ""
    recents: tuple[tuple[str, str], ...] = ()  # path, text
    left: tuple[tuple[int, str], ...] = ()  # images of the project that are not open: number, name
    new: Action = Action()
    save: Action = Action()
    save_model: Action = Action()
    export: Action = Action()
    open: Action = Action()
    progress: Progress | None = None
    message: Message = Message()
