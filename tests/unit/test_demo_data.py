"""The digits: what they are, and that their split is fixed and fair."""

from __future__ import annotations

import numpy as np
import pytest

from stepd.demo import data


def rows(examples: data.Examples) -> set[bytes]:
    return {image.tobytes() for image in examples.images}


def test_all_digits_are_there() -> None:
    train, held_out = data.load()
    assert len(train) + len(held_out) == 1797
    for part in (train, held_out):
        assert part.images.shape == (len(part), data.PIXELS)
        assert part.images.dtype == np.float32
        assert part.images.min() == 0
        assert part.images.max() == 1
        assert set(part.labels.tolist()) == set(range(data.CLASSES))


def test_the_split_is_fixed() -> None:
    train, held_out = data.load()
    assert (len(train), len(held_out)) == (1439, 358)
    assert held_out.labels[:12].tolist() == [5, 2, 4, 9, 5, 7, 3, 1, 2, 3, 4, 0]


def test_no_image_is_on_both_sides() -> None:
    train, held_out = data.load()
    assert rows(train).isdisjoint(rows(held_out))


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_workers_share_the_training_images_without_overlap(workers: int) -> None:
    train = data.load().train
    shares = [data.share(train, rank, workers) for rank in range(workers)]
    assert sum(map(len, shares)) == len(train)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert set.union(*map(rows, shares)) == rows(train)


def test_a_pass_has_each_example_once_and_the_next_pass_another_order() -> None:
    train = data.load().train
    size, steps_per_pass = 32, len(train) // 32
    first, second = (
        [data.batch(train, start + step, size, seed=1).images for step in range(steps_per_pass)]
        for start in (0, steps_per_pass)
    )
    assert {images.shape for images in first} == {(size, data.PIXELS)}
    assert len({image.tobytes() for images in first for image in images}) == len(
        {image.tobytes() for image in np.concatenate(first)}
    )
    assert not np.array_equal(first[0], second[0])


def test_a_batch_depends_on_its_step_and_seed_alone() -> None:
    train = data.load().train
    again = data.batch(train, 17, 32, seed=1)
    assert np.array_equal(again.images, data.batch(train, 17, 32, seed=1).images)
    assert not np.array_equal(again.images, data.batch(train, 18, 32, seed=1).images)
    assert not np.array_equal(again.images, data.batch(train, 17, 32, seed=2).images)


def test_a_share_smaller_than_a_batch_is_a_batch() -> None:
    few = data.load().train.take(slice(0, 5))
    assert [len(data.batch(few, step, 32, seed=0)) for step in range(3)] == [5, 5, 5]
