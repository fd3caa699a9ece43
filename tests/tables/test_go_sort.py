"""Lists are left in the order in which Go leaves them; of a true order, that is the order."""

from __future__ import annotations

import random

import pytest

from meshnb.tables.go_sort import go_sorted


@pytest.mark.parametrize("count", [0, 1, 12, 13, 49, 50, 300])
@pytest.mark.parametrize("kinds", [2, 10_000])
def test_a_true_order_is_kept_whatever_the_list_was_like(count: int, kinds: int) -> None:
    chance = random.Random(count)  # noqa: S311  no secret
    mixed = [chance.randrange(kinds) for _ in range(count)]
    rising = sorted(mixed)
    for given in (mixed, rising, rising[::-1], rising[count // 2 :] + rising[: count // 2]):
        assert go_sorted(given, int.__lt__) == rising
