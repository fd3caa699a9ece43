"""What the trace of a request predicts, against what happened.

Run it: ``python -m tests.traces.request_agreement [FOLDER]``.
Each line of each access log of each recording is taken as a request, without its result, and
followed. Where the trace decides, route, cluster, endpoint, policy, status and response flags must
be those of the line. Prints per recording how many lines there are, how many are decided (with one
way that it can end, or with several of which the actual one must be one), how many are not, by
reason, and how many are wrong.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meshnb.sources import Bundle
from meshnb.tables import Facts
from meshnb.traces.following.follow import Follower
from meshnb.traces.mesh import plain
from meshnb.traces.request import Outcome, RequestTrace, requests_of
from tests.conftest import facts_of, recording_names

#: What only a proxy says that decides by its own configuration.
_DECIDED = frozenset(
    {"NR", "NC", "UH", "RL", "RLSE", "FI", "DI", "UAEX", "NFCF", "DPE", "UO", "DO"}
)
_MADE = (
    *("rbac_access_denied", "jwt_authn_access_denied", "local_rate_limited", "direct_response"),
    *("fault_filter", "route_not_found", "cluster_not_found", "no_healthy_upstream", "ext_authz"),
    *("filter_chain_not_found", "http1.codec_error", "cors", "path_normalization_failed"),
)
_COLUMNS = (
    *("proxy", "line", "method", "path", "response_code", "flags", "details"),
    *("connection_details", "route_name", "cluster", "upstream_host", "direction"),
)

Line = Mapping[str, Any]


@dataclass
class Agreement:
    """How the traces of a recording's lines compare with the lines."""

    name: str
    lines: int = 0
    #: lines with one way to end
    certain: int = 0
    #: lines with several ways to end, of which the actual one is one
    among: int = 0
    #: lines whose route and cluster are decided, but not their end
    routed: int = 0
    undecided: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[Line, RequestTrace]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def decided(self) -> int:
        """Lines that are decided, whether with one end or several."""
        return self.certain + self.among


def agreement(name: str, facts: Facts) -> Agreement:
    """Follow each line of a source and compare."""
    found = Agreement(name)
    log = facts["access_log"]
    columns = {column: log[column].tolist() for column in _COLUMNS}
    began = time.perf_counter()
    follower = Follower(facts, cite=False)
    for row, request in enumerate(requests_of(facts)):
        line = {column: plain(values[row]) for column, values in columns.items()}
        trace = follower.follow(request)
        found.lines += 1
        _count(found, line, trace)
    found.seconds = time.perf_counter() - began
    return found


def _count(found: Agreement, line: Line, trace: RequestTrace) -> None:
    fitting = [outcome for outcome in trace.outcomes if fits(outcome, line)]
    unknown = [outcome for outcome in trace.outcomes if not outcome.known]
    if not fitting:
        found.wrong.append((line, trace))
    elif unknown:
        where = all(outcome.cluster is not None for outcome in trace.outcomes)
        found.routed += where
        found.undecided[unknown[0].because] += 1
    elif len(trace.outcomes) == 1:
        found.certain += 1
    else:
        found.among += 1


def fits(outcome: Outcome, line: Line) -> bool:
    """Whether a line may be of a request that ends so."""
    if not outcome.known and outcome.cluster is None and outcome.route is None:
        return True
    if (outcome.route or "") != (line["route_name"] or ""):
        return False
    if (outcome.cluster or "") != (line["cluster"] or ""):
        return False
    host = line["upstream_host"]
    if outcome.known and outcome.endpoint and host and host != outcome.endpoint:
        return False
    return not outcome.known or _same_end(outcome, line)


def _same_end(outcome: Outcome, line: Line) -> bool:
    flags, details = frozenset(line["flags"] or ()), line["details"] or ""
    if outcome.by == "application":
        return not flags & (_DECIDED - (outcome.flags or frozenset())) and not details.startswith(
            _MADE
        )
    if outcome.details is not None and not _same_details(outcome.details, details, line):
        return False
    return (outcome.code is None or outcome.code == (line["response_code"] or 0)) and (
        outcome.flags is None or outcome.flags == flags
    )


def _same_details(wanted: str, details: str, line: Line) -> bool:
    actual = details or line["connection_details"] or ""
    return actual.startswith(wanted[:-1]) if wanted.endswith("…") else actual == wanted


def agreements(folder: Path | None = None) -> Iterator[Agreement]:
    """Yield how each recording compares; those of the tests, or those in a folder."""
    if folder is None:
        for name in recording_names():
            yield agreement(name, facts_of(name))
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() or path.suffix == ".zip":
            yield agreement(path.stem, Facts(Bundle(path, label=path.stem)))


def main() -> None:
    """Print the table."""
    head = ("recording", "lines", "certain", "among", "routed", "open", "wrong", "s")
    widths = (28, 6, 8, 6, 7, 6, 6, 6)
    print("".join(f"{text:<{width}}" for text, width in zip(head, widths, strict=True)))
    total = Agreement("all")
    for one in agreements(Path(sys.argv[1]) if len(sys.argv) > 1 else None):
        _print(one, widths)
        total.lines += one.lines
        total.certain += one.certain
        total.among += one.among
        total.routed += one.routed
        total.undecided += one.undecided
        total.wrong += one.wrong
        total.seconds += one.seconds
        for line, trace in one.wrong[:2]:
            print("   wrong:", {k: v for k, v in line.items() if v is not None})
            print("         ", trace.says, trace.undecided)
    _print(total, widths)
    for reason, count in total.undecided.most_common():
        print(f"{count:>7}  {reason}")


def _print(one: Agreement, widths: tuple[int, ...]) -> None:
    values = (
        *(one.name, one.lines, one.certain, one.among, one.routed),
        *(sum(one.undecided.values()), len(one.wrong), f"{one.seconds:.2f}"),
    )
    print("".join(f"{value!s:<{width}}" for value, width in zip(values, widths, strict=True)))


if __name__ == "__main__":
    main()
