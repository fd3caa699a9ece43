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


#: Names, a number or not, and the places in which ``sort.Slice`` of Go 1.26 leaves them.
_MIXED = (
    (
        "15010 tls:15021 15014 80 9000 9090 8080 in-a in-b pass - - in-b in-a pass in-c in-c",
        "8 9 2 3 4 5 6 7 1 10 0 11 12 13 14 15 16",
    ),
    (
        "70 78 75 2 x 71 92 71 82 x 20 x 95 9 76 4 x 77 x x",
        "3 15 13 10 0 5 7 2 14 17 1 8 6 12 4 11 16 9 18 19",
    ),
    (
        (
            "x x 74 18 x 18 34 x 81 x 50 69 75 44 x x x x x 42 x x 92 x x x 16 82 x 9 20 55 x x 79"
            " x 76 36 5 10 69 26 x 34 6 x 47 x x 59 x 77 x 65 82 x 39 34 71 54"
        ),
        (
            "38 44 29 39 26 3 5 30 41 6 57 43 37 56 19 13 46 10 59 31 49 53 40 11 58 2 12 36 51 34"
            " 1 28 32 33 8 35 4 27 7 25 24 23 42 22 0 45 21 47 48 20 50 18 52 17 54 55 16 15 14 9"
        ),
    ),
)


@pytest.mark.parametrize(("names", "places"), _MIXED)
def test_an_order_that_is_none_is_left_as_go_leaves_it(names: str, places: str) -> None:
    def less(one: tuple[int, str], other: tuple[int, str]) -> bool:
        numbers = one[1].isdecimal() and other[1].isdecimal()
        return numbers and int(one[1]) < int(other[1])

    found = go_sorted(enumerate(names.split()), less)
    assert [place for place, _ in found] == [int(place) for place in places.split()]
