"""A chart over time: when did it begin, and did it end. Alone knows plotly."""

from __future__ import annotations

import pandas as pd
from plotly import graph_objects

from meshnb.tables import Facts
from meshnb.traces.failures import failed
from meshnb.views.base import escape

#: Colours that colour-blind eyes can tell apart (Okabe and Ito), each with a pattern of its own.
_LOOKS = (
    ("#0072B2", ""),
    ("#D55E00", "/"),
    ("#E69F00", "x"),
    ("#CC79A7", "."),
    ("#009E73", "\\"),
    ("#56B4E9", "|"),
)
_FINE = "fine"
#: The chart has about so many bars.
_BARS = 60


def requests_over_time(facts: Facts) -> graph_objects.Figure:
    """Return the lines of access logs as bars over time, by outcome: fine, or code and flags.

    A request that passes several proxies is counted at each of them.
    """
    log = facts["access_log"].dropna(subset=["start_time"])
    times = log["start_time"].dt.tz_localize(None)
    length = (times.max() - times.min()).total_seconds() if len(times) else 0.0
    each = f"{max(round(length / _BARS), 1)}s"
    figure = graph_objects.Figure()
    outcomes = sorted(times.groupby(_outcome(log)), key=lambda one: one[0] != _FINE)
    for place, (name, group) in enumerate(outcomes):
        counts = group.dt.floor(each).value_counts().sort_index()
        colour, pattern = _LOOKS[place % len(_LOOKS)]
        figure.add_bar(
            x=counts.index,
            y=counts.to_numpy(),
            name=escape(name),
            marker={
                "color": colour,
                "pattern": {"shape": pattern, "fillmode": "overlay", "fgopacity": 0.6, "size": 6},
            },
        )
    figure.update_layout(
        barmode="stack",
        title=f"Lines of access logs per {each} by outcome, {escape(facts.source.label)}",
        xaxis={"title": "time (UTC)"},
        yaxis={"title": "lines", "gridcolor": "rgba(128,128,133,0.3)"},
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": "#808085"},
        height=360,
    )
    return figure


def _outcome(log: pd.DataFrame) -> pd.Series:
    """Return the outcome of each line in a few characters, ``fine`` for all that succeeded."""
    told = (
        log["response_code"].astype("string").fillna("")
        + " "
        + log["response_flags"].replace("-", "").fillna("")
    ).str.strip()
    return told.where(failed(log), _FINE)
