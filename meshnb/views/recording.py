"""The button that writes what one looks at as a bundle, without secrets."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ipywidgets

from meshnb.errors import MeshnbError
from meshnb.guides.base import Case
from meshnb.guides.pictures import State
from meshnb.sources import Answer, Bundle, is_cluster, record
from meshnb.views.base import escape, mark, styled
from meshnb.views.work import failure

_MB = 1_000_000


class RecordButton(ipywidgets.HBox):
    """Writes a bundle beside the notebook. Of a cluster it holds what was answered already."""

    def __init__(self) -> None:
        """Begin without a case, and out of sight."""
        self._case: Case | None = None
        self._button = ipywidgets.Button(
            description="Write a recording",
            tooltip="Writes all answers into one zip beside the notebook, without secrets",
            layout=ipywidgets.Layout(width="auto"),
        )
        self._button.on_click(self._on_click)
        self._mask = ipywidgets.Checkbox(
            description="mask names",
            tooltip="Puts other names and addresses in their place, for a recording to share",
            indent=False,
            layout=ipywidgets.Layout(width="auto"),
        )
        self._said = ipywidgets.HTML()
        super().__init__(
            [self._button, self._mask, self._said], layout=ipywidgets.Layout(display="none")
        )

    def show(self, case: Case | None) -> None:
        """Record another case from now on; nothing, when there is none."""
        self._case = case
        self._said.value = ""
        self.layout.display = None if case is not None else "none"

    def _on_click(self, _: Any) -> None:
        assert self._case is not None
        try:
            said = written(self._case, mask_names=self._mask.value)
        except MeshnbError as error:
            said = failure(error, "not written")
        self._said.value = styled(f'<span role="status">{said}</span>')


def written(case: Case, folder: Path | None = None, *, mask_names: bool = False) -> str:
    """Write the bundle of a case, and say where it is, how large, and what was taken out.

    With ``mask_names`` there are other names in it, and its own does not tell the source's. Raises
    BundleError when it cannot be written.
    """
    facts = case.facts
    label = re.sub(r"[^A-Za-z0-9._-]+", "-", facts.source.label).strip("-.") or "mesh"
    if mask_names:
        label = "masked"
    path = (folder or Path()) / f"meshnb-{label}-{facts.now:%Y%m%d-%H%M%S}.zip"
    source = facts.kept if is_cluster(facts.source.label) else facts.source
    bundle = Bundle(record(source, path, progress=_silently, mask_names=mask_names))
    taken_out = bundle.manifest.get("redacted") or ["nothing had to be"]
    size = path.stat().st_size / _MB
    masked = "; ".join(map(str, bundle.manifest.get("masked", ())))
    return (
        f"{mark(State.FINE, 'written')} <code>{escape(path)}</code> · {size:.1f} MB · "
        f"taken out: {escape('; '.join(map(str, taken_out)))}"
        + (f" · masked: {escape(masked)}. Read its logs before you share it." if masked else "")
    )


def _silently(answers: Iterable[Answer], _: int) -> Iterable[Answer]:
    return answers
