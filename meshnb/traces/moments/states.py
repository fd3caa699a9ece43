"""What istiod and proxies say of themselves at two moments, the same of several in one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from meshnb.tables import Facts
from meshnb.traces.mesh import plain
from meshnb.traces.moments.base import Change, Edit, first_edits, plural
from meshnb.traces.moments.rows import RowChange, row_changes


@dataclass(frozen=True, slots=True)
class _Watched:
    """A table whose rows are watched: which columns, and what a row is called."""

    about: str
    table: str
    columns: tuple[str, ...]
    #: the key column with those who say the same
    who: str
    #: one of them, and several
    nouns: tuple[str, str]
    #: what is said of them, with the other keys of the row; empty when it is they themselves
    title: str = ""
    #: whether rows that come and go are told; those of pods that come and go are not
    coming: bool = False


_PROXIES = ("proxy", "proxies")
_ZTUNNELS = ("ztunnel", "ztunnels")
_WATCHED = (
    _Watched(
        "control plane",
        "mesh_settings",
        ("value",),
        "istiod",
        ("istiod", "istiods"),
        "mesh setting {setting}",
        coming=True,
    ),
    _Watched(
        "control plane",
        "istiod_ports",
        ("answers",),
        "istiod",
        ("istiod", "istiods"),
        "port {port}",
    ),
    _Watched(
        "control plane",
        "remote_clusters",
        ("sync",),
        "istiod",
        ("istiod", "istiods"),
        "cluster {cluster}",
        coming=True,
    ),
    _Watched(
        "proxy",
        "proxies",
        ("state", "ready", "istiod", "istio_version", "answered"),
        "proxy",
        _PROXIES,
    ),
    _Watched("proxy", "proxy_status", ("sync", "error"), "proxy", _PROXIES, "{xds}"),
    _Watched(
        "resource",
        "ztunnel_workloads",
        ("waypoint", "protocol", "status", "authorization_policies"),
        "proxy",
        _ZTUNNELS,
        "workload {uid}",
    ),
    _Watched(
        "resource",
        "ztunnel_services",
        ("waypoint", "healthy", "ports"),
        "proxy",
        _ZTUNNELS,
        "service {hostname}",
        coming=True,
    ),
    _Watched(
        "resource",
        "ztunnel_policies",
        ("action", "scope", "rules", "dry_run"),
        "proxy",
        _ZTUNNELS,
        "policy {namespace}/{policy_name}",
        coming=True,
    ),
    _Watched(
        "certificate",
        "certificates",
        ("not_after", "serial_number", "issuer", "sans", "root_fingerprint", "problem"),
        "proxy",
        _PROXIES,
        "certificate {resource_name}",
    ),
    _Watched(
        "certificate",
        "ztunnel_certificates",
        ("not_after", "serial_number", "issuer", "sans", "root_fingerprint", "problem"),
        "proxy",
        _ZTUNNELS,
        "certificate {certificate_name}",
    ),
)
#: What changes when a certificate is renewed; when nothing else does, that is all that happened.
_RENEWAL = frozenset({"not_after", "serial_number"})
#: Tables whose gaps mean that something could not be compared.
WATCHED_TABLES = tuple(watched.table for watched in _WATCHED)


def state_changes(
    before: Facts,
    after: Facts,
    names: Mapping[str, str],
    new: frozenset[str],
    once: frozenset[str],
) -> Iterator[Change]:
    """Yield what istiod, proxies and ztunnels say that is not as it was.

    ``new`` has the names of pods and proxies that took the place of others: certificates of theirs
    are new, too, and not renewed. ``once`` has the questions that only one of the moments asked.
    """
    for watched in _WATCHED:
        grouped: dict[tuple[str, tuple[object, ...], tuple[Edit, ...]], list[RowChange]] = {}
        # Those that are there at one moment only are told as pods.
        there = {names.get(one, one) for one in before[watched.table][watched.who]}
        there &= set(after[watched.table][watched.who])
        for row in row_changes(watched.table, before, after, names, once):
            key = dict(row.key)
            if watched.about == "certificate" and str(key[watched.who]) in new:
                continue
            found = tuple(edit for edit in row.edits if _column(edit) in watched.columns)
            coming = watched.coming and row.state != "changed" and key[watched.who] in there
            if not (found or coming):
                continue
            rest = tuple(value for title, value in row.key if title not in (watched.who, "istiod"))
            shown = found if watched.about != "certificate" else _without_serials(found)
            grouped.setdefault((row.state, rest, shown), []).append(row)
        for (state, _, shown), rows in grouped.items():
            yield _change(watched, state, shown, rows)


def _column(edit: Edit) -> str:
    return edit.path.partition(".")[0].partition("[")[0].partition(" ")[0]


def _without_serials(found: tuple[Edit, ...]) -> tuple[Edit, ...]:
    """Return edits that are alike for many: numbers and seconds of certificates are not."""
    return tuple(
        Edit(edit.path, edit.before[:16], edit.after[:16]) if edit.path == "not_after" else edit
        for edit in found
        if edit.path != "serial_number"
    )


def _change(
    watched: _Watched, state: str, found: tuple[Edit, ...], rows: list[RowChange]
) -> Change:
    key = {title: plain(value) for title, value in rows[0].key}
    who = tuple(dict.fromkeys(str(dict(row.key)[watched.who]) for row in rows))
    one, several = watched.nouns
    people = who[0] if len(who) == 1 else plural(len(who), one, several)
    title = watched.title.format_map({name: value or "" for name, value in key.items()})
    subject = f"{title} of {people}" if title else people
    if watched.about == "certificate" and {_column(edit) for edit in found} <= _RENEWAL:
        state, words = "renewed", f"{subject} was renewed"
        until = next((edit.after for edit in found if edit.path == "not_after"), "")
        words += f", valid until {until.replace('T', ' ')} UTC" if until else ""
    elif state == "changed":
        words = f"{subject}: {first_edits(found, 2)}"
    else:
        words = f"{subject} is {'new' if state == 'added' else 'gone'}"
    return Change(
        watched.about,
        subject,
        state,
        words,
        found,
        proxies=who if watched.who == "proxy" else (),
        question=rows[0].question,
    )
