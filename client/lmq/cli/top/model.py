"""What the screen knows, and what each thing that happens makes of it. Pure: no terminal, no broker, no clock.

`update` takes what happened and returns the next model, with wishes for whoever can carry them out.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from lmq.cli.held import for_words
from lmq.cli.humane import held, short
from lmq.cli.params import parse_duration
from lmq.cli.tables import one_line
from lmq.cli.top.panes import SORTS, Pane, Row, Table, named, table_of
from lmq.cli.top.view import Swaps, View
from lmq_proto.bounds import PRIORITY_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lmq import Event

SILENT_S = 3.0
"""The broker ticks each second: silent for so long, and the screen says that it is old."""
SAID_S = 6.0
"""How long a message stays."""
PAGE = 10

# --- what happens ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Key:
    """A key was pressed: a character, or a name as `up`, `tab`, `esc`, `enter`, `backspace`."""

    name: str


@dataclass(frozen=True, slots=True)
class Seen:
    """The broker answered."""

    view: View
    now_s: float


@dataclass(frozen=True, slots=True)
class Passed:
    """Time went by, and nothing else happened."""

    now_s: float


@dataclass(frozen=True, slots=True)
class Happened:
    """The broker told of an event."""

    event: Event


@dataclass(frozen=True, slots=True)
class Did:
    """A wish was carried out, or was not."""

    text: str
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Told:
    """The answer to `AskWhy`."""

    job_id: str
    lines: tuple[str, ...]


Message = Key | Seen | Passed | Happened | Did | Told

# --- what is wished for ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Leave:
    """End the screen."""

    interrupted: bool = False
    """By ctrl-c."""


@dataclass(frozen=True, slots=True)
class Look:
    """Ask the broker again, now; for jobs of this user only, if one is named."""

    user: str


@dataclass(frozen=True, slots=True)
class AskWhy:
    """Ask why a job waits."""

    job_id: str


@dataclass(frozen=True, slots=True)
class CancelJob:
    """Cancel a job."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Prioritise:
    """Give a job another priority."""

    job_id: str
    priority: int


@dataclass(frozen=True, slots=True)
class PauseIt:
    """Pause a queue or a worker."""

    noun: Literal["queue", "worker"]
    name: str
    for_s: float | None


@dataclass(frozen=True, slots=True)
class ResumeIt:
    """End a pause or drain."""

    noun: Literal["queue", "worker"]
    name: str


Act = CancelJob | Prioritise | PauseIt | ResumeIt
Wish = Leave | Look | AskWhy | Act

# --- what is known ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Confirm:
    """A question that y answers with the act; everything else does nothing."""

    question: str
    act: Act
    about: Row | None = None
    """Whose priority may be moved further while it is asked."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A line that is being typed: how long to pause something, or whose jobs to show."""

    question: str
    text: str = ""
    pause: PauseIt | None = None
    """None: a user's name is typed."""
    wrong: str = ""
    """Why what was typed will not do."""


@dataclass(frozen=True, slots=True)
class Popup:
    """A box over the screen; any key but those that move closes it."""

    title: str
    lines: tuple[str, ...]
    job_id: str = ""
    """Whom it is about; empty: nobody."""
    top: int = 0


@dataclass(frozen=True)
class Model:
    """All that is drawn."""

    view: View | None = None
    focus: Pane = Pane.WAITING
    selected: Mapping[Pane, str] = field(default_factory=dict)
    """The key of the selected row, where one was chosen."""
    places: Mapping[Pane, int] = field(default_factory=dict)
    """Where that row was last seen: whoever stands there is selected when it is gone."""
    sorts: Mapping[Pane, str] = field(
        default_factory=lambda: {pane: names[0] for pane, names in SORTS.items()}
    )
    user: str = ""
    """Only this user's jobs are shown; empty: all."""
    prompt: Confirm | Entry | None = None
    popup: Popup | None = None
    said: Did | None = None
    said_s: float = 0.0
    now_s: float = 0.0
    """Monotonic, as last told."""
    seen_s: float = 0.0
    """When the broker was last heard."""
    swaps: Swaps = field(default_factory=Swaps)

    @property
    def is_old(self) -> bool:
        """Whether the broker has not answered for a while."""
        return self.now_s - self.seen_s > SILENT_S

    def table(self, pane: Pane) -> Table:
        """Return a pane's table."""
        assert self.view is not None
        return table_of(pane, self.view, self.sorts[pane], self.swaps)

    def index(self, pane: Pane, rows: list[Row]) -> int:
        """Return the index of the selected row; where it is gone, of the row that took its place."""
        key = self.selected.get(pane)
        for index, row in enumerate(rows):
            if row.key == key:
                return index
        return max(0, min(self.places.get(pane, 0), len(rows) - 1))

    def row(self) -> Row | None:
        """Return the selected row of the pane in focus."""
        if self.view is None:
            return None
        rows = self.table(self.focus).rows
        return rows[self.index(self.focus, rows)] if rows else None


def update(model: Model, message: Message) -> tuple[Model, list[Wish]]:
    """Return what a message makes of a model, and what is to be done about it."""
    match message:
        case Key():
            return _pressed(model, message.name)
        case Seen():
            return _seen(model, message), []
        case Passed():
            return _at(model, message.now_s), []
        case Happened():
            return replace(model, swaps=model.swaps.after(message.event)), []
        case Did():
            return replace(model, said=message, said_s=model.now_s), [Look(model.user)]
        case Told():
            if model.popup is None or model.popup.job_id != message.job_id:
                return model, []
            return replace(model, popup=replace(model.popup, lines=message.lines)), []


def _at(model: Model, now_s: float) -> Model:
    """Let time pass; a message that has stood long enough goes."""
    is_over = model.said is not None and now_s - model.said_s > SAID_S
    return replace(model, now_s=now_s, said=None if is_over else model.said)


def _seen(model: Model, seen: Seen) -> Model:
    """Take a view, unless another was asked for meanwhile; remember where the selected rows stand now."""
    model = replace(_at(model, seen.now_s), seen_s=seen.now_s)
    if seen.view.user != model.user:
        return model
    model = replace(model, view=seen.view)
    selected, places = dict(model.selected), dict(model.places)
    for pane in Pane:
        rows = model.table(pane).rows
        index = model.index(pane, rows)
        places[pane] = index
        if pane in selected and rows:
            selected[pane] = rows[index].key
    return replace(model, selected=selected, places=places)


# --- keys ------------------------------------------------------------------------------------------------------------

_MOVES = {"up": -1, "k": -1, "down": 1, "j": 1, "pageup": -PAGE, "pagedown": PAGE, "home": -1_000_000, "g": -1_000_000,
          "end": 1_000_000, "G": 1_000_000}  # fmt: skip


def _pressed(model: Model, key: str) -> tuple[Model, list[Wish]]:
    if key == "ctrl-c":
        return model, [Leave(interrupted=True)]
    if model.popup is not None:
        return _in_popup(model, model.popup, key), []
    if isinstance(model.prompt, Confirm):
        return _in_confirm(model, model.prompt, key)
    if isinstance(model.prompt, Entry):
        return _in_entry(model, model.prompt, key)
    model = replace(model, said=None)
    if key in _MOVES:
        return _moved(model, _MOVES[key]), []
    match key:
        case "q":
            return model, [Leave()]
        case "tab" | "right" | "l":
            return _turned(model, 1), []
        case "backtab" | "left" | "h":
            return _turned(model, -1), []
        case "s":
            names = SORTS[model.focus]
            following = names[(names.index(model.sorts[model.focus]) + 1) % len(names)]
            return replace(model, sorts={**model.sorts, model.focus: following}), []
        case "/":
            return replace(model, prompt=Entry("only jobs of user:", model.user)), []
        case "esc" if model.user:
            return replace(model, user=""), [Look("")]
        case "?":
            return replace(model, popup=Popup("keys", HELP)), []
        case "c" | "p" | "+" | "=" | "-" | "w" | "enter":
            row = model.row()
            if row is not None:
                # Whatever moves meanwhile, it stays the selected one.
                model = replace(model, selected={**model.selected, model.focus: row.key})
            return _on_row(model, row, key)
    return model, []


def _moved(model: Model, by: int) -> Model:
    """Select another row of the pane in focus."""
    if model.view is None:
        return model
    rows = model.table(model.focus).rows
    if not rows:
        return model
    index = max(0, min(model.index(model.focus, rows) + by, len(rows) - 1))
    return replace(
        model, selected={**model.selected, model.focus: rows[index].key},
        places={**model.places, model.focus: index},
    )  # fmt: skip


def _turned(model: Model, by: int) -> Model:
    """Bring another pane into focus."""
    panes = list(Pane)
    return replace(model, focus=panes[(panes.index(model.focus) + by) % len(panes)])


def _on_row(model: Model, row: Row | None, key: str) -> tuple[Model, list[Wish]]:
    """Begin what a key does to the selected row."""
    job = row.job if row is not None else None
    if key == "p":
        return _pause(model, row), []
    if row is None or job is None:
        return _said(model, "select a job first: tab goes to the next pane, arrows select"), []
    match key:
        case "c":
            return replace(model, prompt=Confirm(f"cancel {named(row)}?", CancelJob(job.id))), []
        case "w" | "enter":
            box = Popup(f"why {short(job.id)}", ("asking the broker...",), job.id)
            return replace(model, popup=box), [AskWhy(job.id)]
    return _prioritise(model, row, job.priority + (-1 if key == "-" else 1)), []


def _prioritise(model: Model, row: Row, priority: int) -> Model:
    """Ask whether a job is to have another priority."""
    assert row.job is not None
    if not 0 <= priority <= PRIORITY_MAX:
        return _said(model, f"priorities go from 0 to {PRIORITY_MAX}")
    question = f"priority {priority} instead of {row.job.priority} for {named(row)}?"
    return replace(model, prompt=Confirm(question, Prioritise(row.job.id, priority), row))


def _pause(model: Model, row: Row | None) -> Model:
    """Ask whether a hold is to end, or for how long one is to be."""
    what = None if row is None else row.queue or row.worker
    if row is None or what is None:
        return _said(model, "select a queue or a worker first: tab goes to the next pane, arrows select")
    noun: Literal["queue", "worker"] = "queue" if row.queue is not None else "worker"
    if what.hold is not None:
        return replace(
            model, prompt=Confirm(f"resume {named(row)}, {held(what.hold)}?", ResumeIt(noun, what.name))
        )
    question = f"pause {named(row)} for how long (30m, 2h; nothing: until resumed):"
    return replace(model, prompt=Entry(question, pause=PauseIt(noun, what.name, None)))


def _said(model: Model, text: str) -> Model:
    return replace(model, said=Did(text), said_s=model.now_s)


def _in_popup(model: Model, popup: Popup, key: str) -> Model:
    if key in _MOVES:
        top = max(0, min(popup.top + _MOVES[key], len(popup.lines) - 1))
        return replace(model, popup=replace(popup, top=top))
    return replace(model, popup=None)


def _in_confirm(model: Model, confirm: Confirm, key: str) -> tuple[Model, list[Wish]]:
    act = confirm.act
    if isinstance(act, Prioritise) and confirm.about is not None and key in ("+", "=", "-"):
        return _prioritise(model, confirm.about, act.priority + (-1 if key == "-" else 1)), []
    model = replace(model, prompt=None)
    if key in ("y", "Y"):
        return replace(model, said=Did("..."), said_s=model.now_s), [act]
    return _said(model, "nothing was done"), []


def _in_entry(model: Model, entry: Entry, key: str) -> tuple[Model, list[Wish]]:
    match key:
        case "esc":
            return replace(model, prompt=None), []
        case "enter":
            return _entered(model, entry)
        case "backspace":
            return replace(model, prompt=replace(entry, text=entry.text[:-1], wrong="")), []
        case "tab" if entry.pause is None:
            return replace(model, prompt=replace(entry, text=completed(model, entry.text))), []
    if len(key) == 1:
        return replace(model, prompt=replace(entry, text=entry.text + key, wrong="")), []
    return model, []


def _entered(model: Model, entry: Entry) -> tuple[Model, list[Wish]]:
    """Take what was typed."""
    typed = entry.text.strip()
    if entry.pause is None:
        user = completed(model, typed)
        return replace(model, prompt=None, user=user), [Look(user)]
    for_s = parse_duration(typed) if typed else None
    if typed and not for_s:
        return replace(
            model,
            prompt=replace(entry, wrong="no duration; write 30m, 2h or 1d, or nothing for until resumed:"),
        ), []
    act = replace(entry.pause, for_s=for_s)
    goes_on = "what runs goes on" if act.noun == "queue" else "what runs there finishes"
    question = f"pause {act.noun} {one_line(act.name)}{for_words(for_s)}; {goes_on}?"
    return replace(model, prompt=Confirm(question, act)), []


def completed(model: Model, typed: str) -> str:
    """Return the one name of a user that begins so; what was typed, if there is none or more than one."""
    if model.view is None or not typed:
        return typed
    names = {row.user for row in model.view.users.users if row.user}
    names |= {job.user for job in (*model.view.running, *model.view.waiting)}
    fitting = [name for name in names if name.startswith(typed)]
    return fitting[0] if len(fitting) == 1 and typed not in names else typed


HELP = (
    "arrows, j k      select a row; page up, page down, home, end too",
    "tab, shift-tab   next pane, pane before",
    "c                cancel the selected job",
    "+ -              raise or lower the priority of the selected job",
    "w, enter         why the selected job waits, or what it does",
    "p                pause or resume the selected queue or worker",
    "/                show one user's jobs only; esc shows all again",
    "s                sort the pane in another way",
    "q, ctrl-c        leave; jobs go on",
    "",
    "Nothing is done before you have said y.",
    "A bar shows the share received in the last minute, │ the share wanted.",
    "It is yellow where a user who waits gets less than half of its share.",
    "Owed: engine time that a band is behind its own share, which it gets next.",
)
