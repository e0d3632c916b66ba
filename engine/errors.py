"""Errors a shopkeeper understands: what happened, why, and what to do about it.

Every failure that can reach a person is a `StudioError`. It crosses the process border as
plain JSON (`to_dict` / `from_dict`), so the window shows the very sentence the engine wrote.
This room imports neither torch nor Qt.
"""

from __future__ import annotations

import errno

_BY_CODE: dict[str, type["StudioError"]] = {}


class StudioError(Exception):
    """What happened · why · what you can do.

    Args:
        what: one sentence, no jargon, e.g. ``"The file answers.csv is empty."``
        why: the cause, if it is known and not already said.
        do: the way out, phrased as an instruction.
        details: technical text that is shown folded (never needed to act).
        **facts: JSON-able facts for a button that mends it, e.g. ``missing=["Frage"]``.
    """

    code = "error"

    def __init__(self, what: str, why: str = "", do: str = "", *, details: str = "", **facts):
        super().__init__(" ".join(part for part in (what, why, do) if part))
        self.what, self.why, self.do, self.details, self.facts = what, why, do, details, facts

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        _BY_CODE[cls.code] = cls

    def to_dict(self) -> dict:
        return {"code": self.code, "what": self.what, "why": self.why, "do": self.do,
                "details": self.details, "facts": self.facts}

    @staticmethod
    def from_dict(data: dict) -> "StudioError":
        """Rebuild an error of its own class; an unknown code becomes a plain `StudioError`."""
        cls = _BY_CODE.get(data.get("code", ""), StudioError)
        return cls(data.get("what", "Something went wrong."), data.get("why", ""), data.get("do", ""),
                   details=data.get("details", ""), **data.get("facts", {}))


_BY_CODE[StudioError.code] = StudioError


class InvalidSpec(StudioError, ValueError):
    """A setting has an impossible value; `facts["fields"]` maps field name to sentence."""

    code = "invalid-spec"


class BadData(StudioError, ValueError):
    """A data file cannot be read or holds nothing to learn from."""

    code = "bad-data"


class BadModel(StudioError, ValueError):
    """A folder is not a language model that can be used here."""

    code = "bad-model"


class BadAdapter(StudioError, ValueError):
    """An adapter's files are missing, damaged, hostile or of an unknown kind."""

    code = "bad-adapter"


class WrongBase(BadAdapter, RuntimeError):
    """The adapter was made for another base model. As in torch, where tensors of a file have other sizes, a `RuntimeError`, too."""

    code = "wrong-base"


class UnsupportedLayer(StudioError, ValueError):
    """A method cannot sit on this kind of layer; says which and why."""

    code = "unsupported-layer"


class CannotMerge(StudioError, ValueError, NotImplementedError):
    """What an adapter does depends on the input (or it sits in no layer), so that no weight can say it. Nothing was changed."""

    code = "cannot-merge"


class DamagedCheckpoint(StudioError):
    """A checkpoint is incomplete or its content does not match its own checksums."""

    code = "damaged-checkpoint"


class DiskFull(StudioError, OSError):
    """There is no room left; everything written before stays as it was."""

    code = "disk-full"


class OutOfMemory(StudioError, MemoryError):
    """The computer's or the graphics card's memory ran out."""

    code = "out-of-memory"


class Unreachable(StudioError, ConnectionError):
    """A download could not be reached or was cut off; what had arrived is kept."""

    code = "unreachable"


class Diverged(StudioError, ArithmeticError):
    """Training produced numbers that are not numbers (NaN or infinity)."""

    code = "diverged"


class VerificationFailed(StudioError):
    """An exported file is not what the live stack was."""

    code = "verification-failed"


class WorkerDied(StudioError):
    """The process that did the work ended without a word (crash, kill, power, memory)."""

    code = "worker-died"


class Busy(StudioError):
    """Something else holds what is needed (a second studio, a running job)."""

    code = "busy"


class Cancelled(StudioError):
    """The person asked to stop; not a failure."""

    code = "cancelled"

    def __init__(self, what: str = "Stopped as you asked.", *args, **kwargs):
        super().__init__(what, *args, **kwargs)


def explain(error: BaseException) -> StudioError:
    """Turn any exception into a `StudioError`, keeping the traceback's text as folded details."""
    import traceback

    if isinstance(error, StudioError):
        return error
    details = "".join(traceback.format_exception(type(error), error, error.__traceback__))[-8000:]
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
        return DiskFull("The disk is full.", "There was no room left to write the next file.",
                        "Free some space (or choose another folder in Settings) and continue.", details=details)
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower() or "can't allocate memory" in str(error):
        return OutOfMemory("The computer's memory ran out.", "The work needed more than is free.",
                           "Close other programs, choose a smaller model or shorter examples, and continue.", details=details)
    if isinstance(error, KeyboardInterrupt):
        return Cancelled()
    if isinstance(error, PermissionError):
        return StudioError(f"The file {error.filename or ''} may not be opened or written.".replace("  ", " "),
                           "The system refused access.", "Choose another folder, or change the file's permissions.", details=details)
    return StudioError("Something unexpected went wrong.", f"{type(error).__name__}: {error}"[:500],
                       "Nothing that was saved is lost. Try again; if it returns, copy the details and report them.", details=details)
