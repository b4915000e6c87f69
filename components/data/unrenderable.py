"""Why a conversation cannot be rendered: the errors that rendering raises, each with its kind."""

from components.data.faults import FaultKind
from components.errors import DataError


class UnrenderableError(DataError):
    """This conversation cannot be rendered; the message is the reason, without a place."""

    def __init__(self, message: str, kind: FaultKind = FaultKind.REFUSED_BY_TEMPLATE) -> None:
        super().__init__(message)
        self.kind = kind


class DoesNotFitError(UnrenderableError):
    """Not even the first exchange fits into data.max_length."""

    def __init__(self, message: str) -> None:
        super().__init__(message, FaultKind.TOO_LONG)
