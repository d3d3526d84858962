"""Every error a user of Pellucid can meet. A message says what was found, what was expected and what to do next.

    PellucidError
    ├─ ModelNotFound           no such path or name; carries the nearest names
    ├─ UnsupportedModel        a known thing with a fact we do not implement; says which key and value
    ├─ BadCheckpoint           files that contradict each other or themselves
    │  ├─ BadConfig            config.json: not JSON, a required key missing, a key nobody read
    │  ├─ TruncatedFile        a file shorter than its own header says
    │  ├─ BadHeader            a header of safetensors or GGUF that lies or does not parse
    │  ├─ MissingShard         an index names a file that is not there
    │  ├─ MissingTensors       the family needs tensors the files do not hold
    │  ├─ UnknownTensors       the files hold tensors the family has no place for
    │  ├─ MisshapenTensor      a tensor whose shape disagrees with config.json
    │  └─ UnsafePickle         a legacy .bin that wants to run code
    ├─ BadTokenizer            tokenizer files that are missing, contradictory or not understood
    ├─ BadTemplate             no chat template, or one that does not render
    ├─ BadRequest              what was asked cannot be done; carries the field
    │  ├─ UnknownAdapter       no adapter of this name is loaded; carries the nearest names
    │  ├─ OtherBase            an adapter was trained on another model
    │  ├─ PromptTooLong        carries both token counts
    │  └─ EmptyPrompt          nothing to start from
    ├─ ConstraintFailed        a grammar that outgrew its limits, or met an id it forbids, while it ran
    ├─ BadRecord               a run record that is not one, or whose inputs changed
    │  └─ BadLineage           a lineage that goes round in a circle, does not read, or whose files were replaced
    ├─ NotAllowed              a declared use that a license forbids or leaves open; carries the answer
    ├─ BadData                 rows that cannot be learned from; carries where they were read
    ├─ NotFinite               a loss or a gradient that is no number; carries the rows that caused it
    ├─ LostTuning              a merge or an export in which the fine-tune is no longer found; carries the share that is
    ├─ HubError                a download that cannot proceed
    │  ├─ GatedRepository      needs a login and an accepted licence
    │  └─ NotCached            offline, and not on this disk
    ├─ DiskFull                carries needed and free bytes
    ├─ OutOfMemoryBudget       carries needed and available bytes
    ├─ StaleKernels            the native module was built from other sources than those beside it
    └─ MissingExtra            an optional feature is not installed; carries the pip line
"""
from __future__ import annotations

import difflib
from collections.abc import Iterable


class PellucidError(Exception):
    """Base of every error raised on purpose. `exit_code` is what the command line returns: 1 failed, 2 misused."""

    exit_code = 1


class ModelNotFound(PellucidError):
    """No such path or name."""

    exit_code = 2

    def __init__(self, message: str, nearest: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.nearest = nearest


class UnsupportedModel(PellucidError):
    """A model, or one setting of it, that Pellucid does not implement."""


class BadCheckpoint(PellucidError):
    """Files of a model that contradict each other or themselves."""


class BadConfig(BadCheckpoint):
    """config.json does not parse, lacks a key, or has a key nobody read."""


class TruncatedFile(BadCheckpoint):
    """A file shorter than its own header says."""


class BadHeader(BadCheckpoint):
    """A file header that lies about lengths or does not parse."""


class MissingShard(BadCheckpoint):
    """An index names a file that is not there."""


class MissingTensors(BadCheckpoint):
    """Tensors the family needs are not in the files."""


class UnknownTensors(BadCheckpoint):
    """Tensors in the files have no place in the family."""


class MisshapenTensor(BadCheckpoint):
    """A tensor's shape disagrees with config.json."""


class UnsafePickle(BadCheckpoint):
    """A legacy checkpoint that asks for more than tensors."""


class BadTokenizer(PellucidError):
    """Tokenizer files that are missing, contradictory or not understood."""


class BadTemplate(PellucidError):
    """No chat template, or one that does not render."""


class BadRequest(PellucidError):
    """What was asked cannot be done. `field` names the argument."""

    exit_code = 2

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class UnknownAdapter(BadRequest):
    """No adapter of this name is loaded."""

    def __init__(self, message: str, nearest: tuple[str, ...] = ()) -> None:
        super().__init__(message, field="adapter")
        self.nearest = nearest


class OtherBase(BadRequest):
    """An adapter that was trained on another model than the one it is loaded on, by their contents."""

    def __init__(self, message: str) -> None:
        super().__init__(message, field="adapter")


class PromptTooLong(BadRequest):
    """The prompt and the room it needs do not fit. Carries both token counts."""

    def __init__(self, message: str, *, n_prompt: int, n_ctx: int) -> None:
        super().__init__(message, field="prompt")
        self.n_prompt, self.n_ctx = n_prompt, n_ctx


class EmptyPrompt(BadRequest):
    """An empty prompt for a model without a beginning-of-sequence token."""


class ConstraintFailed(PellucidError):
    """A grammar that could not go on with one output."""


class BadRecord(PellucidError):
    """A run record that does not parse, or whose inputs are not what they were."""


class BadLineage(BadRecord):
    """A lineage that goes round in a circle, does not read, or tells of files that were replaced."""


class NotAllowed(PellucidError):
    """A declared use that a license in the lineage forbids, or does not answer for. Carries the answer: not allowed, or unknown."""

    def __init__(self, message: str, *, answer: str = "not allowed") -> None:
        super().__init__(message)
        self.answer = answer


class BadData(PellucidError):
    """Rows that cannot be learned from. `origins` says where they were read."""

    def __init__(self, message: str, origins: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.origins = tuple(origins)


class NotFinite(PellucidError):
    """A loss or a gradient that is no number. `origins`: the rows of the batch that caused it."""

    def __init__(self, message: str, origins: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.origins = tuple(origins)


class LostTuning(PellucidError):
    """A merge or an export in which the fine-tune is no longer found. `share`: how much of it is."""

    def __init__(self, message: str, *, share: float) -> None:
        super().__init__(message)
        self.share = share


class HubError(PellucidError):
    """A download that cannot proceed."""


class GatedRepository(HubError):
    """The repository wants a login and an accepted licence."""


class NotCached(HubError):
    """Offline, and the files are not on this disk."""


class DiskFull(PellucidError):
    """Not enough room on the disk. Carries both byte counts."""

    def __init__(self, message: str, *, needed_bytes: int, free_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes, self.free_bytes = needed_bytes, free_bytes


class OutOfMemoryBudget(PellucidError):
    """Not enough memory. Carries both byte counts."""

    def __init__(self, message: str, *, needed_bytes: int, available_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes, self.available_bytes = needed_bytes, available_bytes


class StaleKernels(PellucidError):
    """The native module was built from other sources than those beside it."""


class MissingExtra(PellucidError):
    """An optional feature is not installed. Carries the pip line."""

    exit_code = 2

    def __init__(self, feature: str, extra: str) -> None:
        self.pip_line = f"pip install 'pellucid[{extra}]'"
        super().__init__(f"{feature} needs the extra {extra!r}, which is not installed. Try: {self.pip_line}")


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> tuple[str, ...]:
    """Up to three known names that look like `name`, whatever their case or owner. cutoff: how like, from 0 (anything) to 1 (equal)."""
    spelled: dict[str, str] = {}
    for each in known:
        spelled.setdefault(each.lower(), each)
        spelled.setdefault(each.lower().rsplit("/", 1)[-1], each)
    close = [*difflib.get_close_matches(name.lower(), spelled, n=3, cutoff=cutoff),
             *difflib.get_close_matches(name.lower().rsplit("/", 1)[-1], spelled, n=3, cutoff=cutoff + 0.1)]
    return tuple(dict.fromkeys(spelled[each] for each in close))[:3]


def did_you_mean(near: Iterable[str]) -> str:
    """` Did you mean qwen3-4b, qwen3-8b?`, or nothing where nothing is near."""
    return f" Did you mean {told}?" if (told := ", ".join(near)) else ""
