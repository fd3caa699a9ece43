"""The order to look in: guides, as values. Each leads a reader to a cause and its remedy."""

from __future__ import annotations

from collections.abc import Mapping

from meshnb.guides.base import (
    Case,
    Chosen,
    Excerpt,
    Fork,
    Guide,
    Option,
    Page,
    Pick,
    Step,
    Stop,
    Walk,
)
from meshnb.guides.control_plane_config import CONTROL_PLANE_CONFIG
from meshnb.guides.data_plane import DATA_PLANE
from meshnb.guides.data_plane_config import DATA_PLANE_CONFIG
from meshnb.guides.triage import TRIAGE

__all__ = [
    "GUIDES",
    "Case",
    "Chosen",
    "Excerpt",
    "Fork",
    "Guide",
    "Option",
    "Page",
    "Pick",
    "Step",
    "Stop",
    "Walk",
]

#: Every guide by its name, the one to begin with first.
GUIDES: Mapping[str, Guide] = {
    guide.name: guide for guide in (TRIAGE, CONTROL_PLANE_CONFIG, DATA_PLANE_CONFIG, DATA_PLANE)
}
