"""Pictures: what notebooks show. Alone knows ipywidgets, IPython and plotly."""

from __future__ import annotations

from meshnb.views.charts import requests_over_time
from meshnb.views.chooser import SourceChooser
from meshnb.views.diagnosis import DiagnosisView, checks_of
from meshnb.views.guide import GuideView
from meshnb.views.sights import SightsView
from meshnb.views.tables import TablesView, TableView
from meshnb.views.trace import ChangeView, ConnectionView, RequestView
from meshnb.views.watching import WatchingView

__all__ = [
    "ChangeView",
    "ConnectionView",
    "DiagnosisView",
    "GuideView",
    "RequestView",
    "SightsView",
    "SourceChooser",
    "TableView",
    "TablesView",
    "WatchingView",
    "checks_of",
    "requests_over_time",
]
