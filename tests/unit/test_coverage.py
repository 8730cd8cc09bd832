"""Which elements of the accumulator have been reached, and where a contribution's elements lie."""

from hypothesis import given
from hypothesis import strategies as st

from stepd_server.shard.coverage import Coverage, Track

STRETCHES = st.tuples(st.integers(0, 40), st.integers(1, 15)).map(lambda t: (t[0], t[0] + t[1]))


@given(st.lists(STRETCHES, max_size=12))
def test_a_stretch_is_split_into_what_was_reached_and_what_was_not(stretches: list[tuple[int, int]]) -> None:
    """The parts are in order, make up the stretch, and say of every element what a plain set says."""
    coverage, reached = Coverage(), set[int]()
    for start, stop in stretches:
        parts = list(coverage.add(start, stop))
        told = [(e, known) for low, high, known in parts for e in range(low, high)]
        assert told == [(e, e in reached) for e in range(start, stop)]
        reached |= set(range(start, stop))


def test_neighbouring_stretches_become_one() -> None:
    """A contribution that comes chunk by chunk costs no memory."""
    coverage = Coverage()
    for start in range(0, 1000, 10):
        assert list(coverage.add(start, start + 10)) == [(start, start + 10, False)]
    assert repr(coverage) == "Coverage([(0, 1000)])"


@st.composite
def tracks(draw: st.DrawFn) -> list[tuple[int, int]]:
    ranges, at = [], 0
    for gap, size in draw(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), max_size=8)):
        ranges.append((at + gap, at + gap + size))
        at += gap + size
    return ranges


@given(tracks(), st.data())
def test_a_track_translates_offsets(ranges: list[tuple[int, int]], data: st.DataObject) -> None:
    """Element i of the ranges laid end to end is where a plain list says it is."""
    places = [e for start, stop in ranges for e in range(start, stop)]
    track = Track(ranges)
    assert track.size == len(places)
    offset = data.draw(st.integers(0, len(places)))
    count = data.draw(st.integers(0, len(places) - offset))
    flat = [(e, at + e - start) for start, stop, at in track.flat(offset, count) for e in range(start, stop)]
    assert flat == [(e, i) for i, e in enumerate(places[offset : offset + count])]
    assert track.frontier(offset, end=1000) == (places[offset] if offset < len(places) else 1000)
