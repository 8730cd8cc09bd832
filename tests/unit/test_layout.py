"""The layout puts every element on exactly one shard, evenly, and cuts only between blocks."""

from hypothesis import given
from hypothesis import strategies as st

from stepd.layout import Slice, flat_starts, lay_out, slices_of, to_proto
from stepd.limits import BLOCK_ELEMENTS
from stepd.v1 import run_pb2

BLOCK = 16
# Scalars, empty tensors, some of a few blocks, and some far larger than a shard.
SIZES = st.lists(st.one_of(st.integers(0, 3), st.integers(0, 100), st.integers(0, 5000)), max_size=30)
COSTS = st.sampled_from([4, 8, 12, 16, 32])


@st.composite
def models(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    sizes = draw(SIZES)
    return sizes, [draw(COSTS) for _ in sizes]


@given(models(), st.integers(1, 9))
def test_every_element_lies_on_exactly_one_shard(model: tuple[list[int], list[int]], shards: int) -> None:
    """The slices of all shards, in order, are the tensors end to end: nothing missing, nothing twice."""
    sizes, costs = model
    pieces = lay_out(sizes, costs, shards, block=BLOCK)
    assert len(pieces) == shards
    at = [(p, e) for p, size in enumerate(sizes) for e in range(size)]
    assert [(s.parameter, e) for piece in pieces for s in piece for e in range(s.start, s.stop)] == at


@given(models(), st.integers(1, 9))
def test_cuts_fall_between_blocks(model: tuple[list[int], list[int]], shards: int) -> None:
    """A slice starts at a multiple of the block and has whole blocks unless its tensor ends in it; none is empty."""
    sizes, costs = model
    for piece in lay_out(sizes, costs, shards, block=BLOCK):
        for s in piece:
            assert s.count > 0
            assert s.start % BLOCK == 0
            assert s.count % BLOCK == 0 or s.stop == sizes[s.parameter]


@given(models(), st.integers(1, 9))
def test_shards_differ_from_an_equal_share_by_at_most_one_block(
    model: tuple[list[int], list[int]], shards: int
) -> None:
    """By bytes: half a block too much at either end."""
    sizes, costs = model
    share = sum(size * cost for size, cost in zip(sizes, costs, strict=True)) / shards
    largest_block = max((min(size, BLOCK) * cost for size, cost in zip(sizes, costs, strict=True)), default=0)
    for piece in lay_out(sizes, costs, shards, block=BLOCK):
        held = sum(s.count * costs[s.parameter] for s in piece)
        assert abs(held - share) <= largest_block + 1


@given(models(), st.integers(1, 9))
def test_the_same_input_gives_the_same_layout(model: tuple[list[int], list[int]], shards: int) -> None:
    """It depends on nothing but its arguments, and survives the wire."""
    pieces = lay_out(*model, shards, block=BLOCK)
    assert lay_out(*model, shards, block=BLOCK) == pieces
    message = to_proto(pieces, [f"shard-{i}:1" for i in range(shards)], run_pb2.D_TYPE_FLOAT32, BLOCK)
    again = run_pb2.Layout.FromString(message.SerializeToString())
    assert tuple(slices_of(shard) for shard in again.shards) == pieces


def test_a_tensor_far_larger_than_a_shard_is_shared_evenly() -> None:
    """One tensor of 100M elements on 8 shards: nobody has over 2% more than an equal share."""
    size = 100_000_000
    held = [sum(s.count for s in piece) for piece in lay_out([size], [16], 8)]
    assert sum(held) == size
    assert max(held) <= size / 8 * 1.02


def test_a_model_without_elements_leaves_every_shard_empty() -> None:
    """Empty tensors appear nowhere."""
    assert lay_out([0, 0], [4, 4], 3) == ((), (), ())
    assert lay_out([], [], 2) == ((), ())


def test_costs_move_the_cut() -> None:
    """A tensor with buffers weighs more than one without: bytes are balanced, not elements."""
    n = 10 * BLOCK_ELEMENTS
    (first, second) = lay_out([n, n], [16, 8], 2)
    assert sum(s.count for s in first) < sum(s.count for s in second)


def test_flat_starts_are_where_slices_begin() -> None:
    """One more number than slices: the last is the size of the flat space."""
    assert flat_starts([Slice(0, 0, 5), Slice(2, 16, 3)]) == [0, 5, 8]
    assert flat_starts([]) == [0]


@st.composite
def models_with_wholes(draw: st.DrawFn) -> tuple[list[int], list[int], dict[int, int]]:
    sizes, costs = draw(models())
    whole = {id_: draw(st.integers(size, 40 * size)) for id_, size in enumerate(sizes) if draw(st.booleans())}
    return sizes, costs, whole


@given(models_with_wholes(), st.integers(1, 9))
def test_a_tensor_that_must_be_whole_lies_on_one_shard(
    model: tuple[list[int], list[int], dict[int, int]], shards: int
) -> None:
    """And everything else holds: all elements once, in order; pieces differ from an equal share by less than what may
    not be cut."""
    sizes, costs, whole = model
    pieces = lay_out(sizes, costs, shards, block=BLOCK, whole=whole)
    at = [(p, e) for p, size in enumerate(sizes) for e in range(size)]
    assert [(s.parameter, e) for piece in pieces for s in piece for e in range(s.start, s.stop)] == at
    slices = [s for piece in pieces for s in piece]
    assert all((s.start, s.count) == (0, sizes[s.parameter]) for s in slices if s.parameter in whole)
    assert all(s.start % BLOCK == 0 and s.count for s in slices)

    def cost(s: Slice) -> int:
        return whole.get(s.parameter, s.count * costs[s.parameter])

    share = sum(map(cost, slices)) / shards
    uncut = [whole.get(id_, min(size, BLOCK) * costs[id_]) for id_, size in enumerate(sizes)]
    for piece in pieces:
        assert abs(sum(map(cost, piece)) - share) <= max(uncut, default=0) + 1
