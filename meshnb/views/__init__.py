"""Pictures: what notebooks show. Alone knows ipywidgets, IPython and plotly."""

from __future__ import annotations

from meshnb.views.charts import requests_over_time
from meshnb.views.chooser import SourceChooser
from meshnb.views.diagnosis import DiagnosisView, checks_of
from meshnb.views.guide import GuideView
from meshnb.views.tables import TablesView, TableView

__all__ = [
    "DiagnosisView",
    "GuideView",
    "SourceChooser",
    "TableView",
    "TablesView",
    "checks_of",
    "requests_over_time",
]
