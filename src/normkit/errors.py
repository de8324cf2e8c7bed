"""Errors that say what was received, what was expected and what to do about it.

Each is a ``ValueError`` or a ``TypeError``, so that code which knows nothing of normkit catches
them as it always has.
"""

from __future__ import annotations

__all__ = [
    "DTypeError",
    "DataError",
    "FileError",
    "ModelError",
    "NonFiniteError",
    "NormError",
    "NotNormalizableError",
    "OptionError",
    "ParityError",
    "SavedError",
    "ShapeError",
    "SyncError",
]


def _message(problem: str, received: object, expected: str, remedy: str) -> str:
    return f"{problem}: received {received}, expected {expected}. {remedy}"


class _ExplainedError(Exception):
    """Builds its text from the four things that a reader needs.

    Frameworks that add to an error's text make it anew from the whole of that text.
    """

    def __init__(
        self, problem: str, *, received: object = None, expected: str = "", remedy: str = ""
    ) -> None:
        self.received, self.expected, self.remedy = received, expected, remedy
        super().__init__(_message(problem, received, expected, remedy) if expected else problem)

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (type(self), str(self), self.__dict__)


def _restore(kind: type[Exception], text: str, state: dict[str, object]) -> Exception:
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    error.__dict__.update(state)
    return error


def is_explained(error: BaseException) -> bool:
    """Whether an error's text already says what to do."""
    return isinstance(error, _ExplainedError)


class NormError(_ExplainedError, ValueError):
    """A norm was described with a value that it cannot have."""


class ShapeError(_ExplainedError, ValueError):
    """An array's shape does not fit."""


class OptionError(_ExplainedError, ValueError):
    """An option has a value that it cannot have, or two options contradict each other."""


class SavedError(_ExplainedError, ValueError):
    """What forward saved does not fit this backward."""


class DTypeError(_ExplainedError, TypeError):
    """An argument's type or dtype is not one that can be normalized."""


class NotNormalizableError(_ExplainedError, TypeError):
    """The object is no array of a library that follows the array API standard."""


class NonFiniteError(_ExplainedError, FloatingPointError):
    """A batch holds NaN or infinity where the user asked to be told."""


class ModelError(_ExplainedError, ValueError):
    """A model, or a layer in it, is not one that this can be done to."""


class ParityError(_ExplainedError, ValueError):
    """Two layers that should compute the same do not; nothing was written."""


class DataError(_ExplainedError, ValueError):
    """Data for a model holds nothing, or not what the model takes."""


class FileError(_ExplainedError, OSError):
    """A file is missing, damaged, of another kind than its name says, or not to be replaced."""


class SyncError(_ExplainedError, RuntimeError):
    """Ranks that should have taken statistics together did not.

    Args:
        layer: the layer at which this rank waited.
        ranks: those that were elsewhere or did not answer, as the whole job numbers them.
    """

    def __init__(
        self,
        problem: str,
        *,
        received: object,
        expected: str,
        remedy: str,
        layer: str = "",
        ranks: tuple[int, ...] = (),
    ) -> None:
        super().__init__(problem, received=received, expected=expected, remedy=remedy)
        self.layer, self.ranks = layer, ranks
