"""Whether what we say of policies is what happened: for each inbound line of each access log.

Run it to see the numbers: ``python -m tests.traces.policy_agreement``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from meshnb.tables import Facts
from meshnb.traces.envoy.matchers import Undecided
from meshnb.traces.envoy.policies import JWT_DENIED, RBAC_DENIED, Decisions
from meshnb.traces.following.inbound import Inbound
from meshnb.traces.mesh import MESH, plain
from tests.conftest import facts_of, recording_names


@dataclass
class Agreement:
    """How many inbound lines there are, what became of them, and which do not agree."""

    refused: int = 0
    admitted: int = 0
    #: of these, lines of a time when connections still went by what was before a change: had they
    #: not agreed, they would be undecided
    either: int = 0
    undecided: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def agreement(facts: Facts) -> Agreement:
    """Compare each inbound line with the decision about what was sent."""
    found = Agreement()
    for line, decided, draining in _decided(facts):
        if isinstance(decided, str):
            found.undecided[decided] += 1
            continue
        details = next(
            (
                str(line[name])
                for name in ("details", "connection_details")
                if str(line[name]).startswith((RBAC_DENIED, JWT_DENIED))
            ),
            None,
        )
        refusal = decided.refusal
        agrees = decided.may_be(details) and (refusal is None or refusal.details == details)
        if not agrees and draining:
            found.undecided["its connection may be older than the change"] += 1
            continue
        if not agrees:
            found.wrong.append(f"{line['proxy']} line {line['line']}: {details}, not {decided}")
        if decided.outcome == "undecided":
            found.undecided[decided.reasons[0]] += 1
            continue
        found.refused += decided.outcome == "stopped"
        found.admitted += decided.outcome == "passed"
        found.either += draining
    return found


def _decided(facts: Facts) -> Iterator[tuple[dict[str, Any], Decisions | str, bool]]:
    """Yield each inbound line, what is decided, and whether connections of before still drain."""
    inbound = Inbound(facts, MESH.make(facts))
    log = facts["access_log"]
    began = _first_seen(log)
    served: set[tuple[Any, Any]] = set()
    for record in log[log["direction"] == "inbound"].to_dict("records"):
        line = {str(name): plain(value) for name, value in record.items()}
        if line["start_time"] is None:
            continue
        ends = (line["downstream_local_address"], line["downstream_remote_address"])
        first = began.get(ends, line["start_time"])
        config, listener = inbound.configs.of(line["proxy"]), inbound.listener(line)
        met = inbound.meet(line)
        draining = False
        if config is not None and listener is not None and listener.since is not None:
            if first < listener.since:
                yield line, "the listener was changed since", False
                continue
            draining = first < listener.since + config.drain.time
            # A connection of before is closed with its next answer, so its later lines are sure.
            draining &= not config.drain.at_once or ends not in served
            served.add(ends)
        yield line, met.reason if isinstance(met, Undecided) else met.decide(), draining


def _first_seen(log: pd.DataFrame) -> dict[tuple[str, str], Any]:
    """Return when each connection was first used, by its two ends, as either of them logged it.

    A connection goes on with the filter chain that it began with, after a change, too.
    """
    found: dict[tuple[str, str], Any] = {}
    for server, client in (
        ("downstream_local_address", "downstream_remote_address"),
        ("upstream_host", "upstream_local_address"),
    ):
        for one, other, time in zip(log[server], log[client], log["start_time"], strict=True):
            if plain(time) is not None:
                ends = (str(one), str(other))
                found[ends] = min(found.get(ends, time), time)
    return found


def main() -> None:
    """Print a line for each recording, and one for all."""
    total = Agreement()
    form = "{:30} admitted {:5} refused {:4} (or by what was before: {:4}) undecided {:4} wrong {}"
    for name in recording_names():
        found = agreement(facts_of(name))
        print(form.format(name, *_counts(found)))
        total.either += found.either
        total.admitted += found.admitted
        total.refused += found.refused
        total.undecided += found.undecided
        total.wrong += found.wrong
    print(form.format("all", *_counts(total)))
    for reason, count in total.undecided.most_common():
        print(f"{count:6} undecided: {reason}")
    for line in total.wrong[:10]:
        print(line)


def _counts(found: Agreement) -> tuple[int, ...]:
    undecided = sum(found.undecided.values())
    return found.admitted, found.refused, found.either, undecided, len(found.wrong)


if __name__ == "__main__":
    main()
