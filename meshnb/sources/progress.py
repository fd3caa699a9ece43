"""How far the asking is, as a value that a terminal and a notebook draw in their own way."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """How many questions are asked and answered, and for whom one waits.

    ``waiting`` has the pods that are being asked now as ``namespace/pod``, each with the seconds
    since its first question, the slowest first; what is no pod's is not in it.
    """

    asked: int
    answered: int
    #: of those answered: how many were refused, or nothing came back
    failed: int
    waiting: tuple[tuple[str, float], ...]
    elapsed_s: float
    #: what the user should rather choose, in words; known from the first look on
    advice: str = ""

    @property
    def done(self) -> bool:
        """Whether every question has its answer."""
        return self.answered == self.asked

    def __str__(self) -> str:
        """Return it as one line, with the three slowest pods."""
        said = f"{self.answered} of {self.asked} answers"
        if self.failed:
            said += f", {self.failed} of them refused or silent"
        slow = [f"{pod} ({seconds:.0f} s)" for pod, seconds in self.waiting if seconds >= 1][:3]
        if slow:
            said += f"; waiting for {', '.join(slow)}"
        more = len(self.waiting) - len(slow)
        return said + (f" and {more} more" if slow and more else "")
