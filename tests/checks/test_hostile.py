"""Names that no Kubernetes would accept, as only a forged bundle holds them."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshnb.diagnosis import diagnose
from tests.alteration import Altered


@pytest.mark.parametrize("name", ["x; rm -rf here", "$(reboot)", "a`b`|sh", "x\n\x1b[2Jy"])
def test_a_remedy_never_offers_a_command_that_a_name_was_smuggled_into(
    name: str, tmp_path: Path
) -> None:
    """Altered: the VirtualService that is to blame has this name."""

    def rename(item: dict[str, dict[str, str]]) -> None:
        item["metadata"]["name"] = name

    altered = Altered("subset-missing", tmp_path).each("virtualservices", "reviews", rename)
    diagnosis = diagnose(altered.facts())
    (cause,) = diagnosis.problems

    assert cause.subject.name == name
    commands = cause.finding.remedy.split("`")[1::2]
    assert not [text for text in commands if set(text) & set(";$()|&<>\n\x1b")]
    assert "\n" not in cause.finding.message
