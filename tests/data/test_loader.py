import multiprocessing

import numpy as np
import pytest
import torch
from PIL import Image

from kdr.config.data import Augment, CocoData, Resize, ShapesData
from kdr.data.coco import CocoIndex, check_images, read_coco
from kdr.data.loader import (
    Batch,
    EvaluationBatches,
    TrainingBatches,
    first_batch_hash,
    first_batches,
)
from kdr.data.splits import open_splits
from kdr.errors import ConfigError, TrialFailure
from kdr.storage.layout import Storage
from tests.data.conftest import CocoFolder


def _data(**settings: object) -> ShapesData:
    return ShapesData(
        **(
            {
                "dataset": "shapes",
                "image_size_px": 32,
                "num_train": 22,
                "num_val": 1,
                "augment": Augment(colour_jitter=0.2),
            }
            | settings
        )
    )


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> CocoIndex:
    return open_splits(_data(), Storage.at(tmp_path_factory.mktemp("storage"))).train


def _awkward_index(awkward: CocoFolder) -> CocoIndex:
    return check_images(read_coco(awkward.images, awkward.annotations), full=False)


def _coco_data(**settings: object) -> CocoData:
    files = dict.fromkeys(
        ("train_images", "train_annotations", "val_images", "val_annotations"), "unused"
    )
    return CocoData(dataset="coco", **(files | settings))


def _hashes(batches: TrainingBatches, epoch: int) -> list[str]:
    return [first_batch_hash(batch) for batch in batches.epoch(epoch)]


def test_batches_do_not_depend_on_workers_or_on_past_and_abandoned_epochs(
    index: CocoIndex,
) -> None:
    resized = _data(resize=Resize(short_side_px=(32, 48, 64)))
    plain = TrainingBatches(index, resized, seed=0, batch_size=4)
    expected = [_hashes(plain, epoch) for epoch in range(3)]
    assert len(plain) == 5
    assert [len(epoch) for epoch in expected] == [5, 5, 5]
    assert len({text for epoch in expected for text in epoch}) == 15
    workers = TrainingBatches(index, resized, seed=0, batch_size=4, num_workers=2)
    next(workers.epoch(0))
    assert [_hashes(workers, epoch) for epoch in (2, 0)] == [expected[2], expected[0]]
    assert _hashes(TrainingBatches(index, resized, seed=0, batch_size=4), 2) == expected[2]
    assert _hashes(TrainingBatches(index, resized, seed=1, batch_size=4), 2) != expected[2]


def test_close_ends_the_workers_and_the_next_epoch_starts_new_ones(index: CocoIndex) -> None:
    batches = TrainingBatches(index, _data(), seed=0, batch_size=4, num_workers=1)
    first = _hashes(batches, 0)
    (worker,) = multiprocessing.active_children()
    assert _hashes(batches, 0) == first
    assert multiprocessing.active_children() == [worker]
    batches.close()
    assert multiprocessing.active_children() == []
    assert _hashes(batches, 0) == first
    batches.close()


def test_loading_does_not_draw_from_the_global_generator(index: CocoIndex) -> None:
    before = torch.get_rng_state()
    list(TrainingBatches(index, _data(), seed=0, batch_size=4).epoch(0))
    list(EvaluationBatches(index, _data(), batch_size=4))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_a_global_batch_is_the_same_for_any_world_size(index: CocoIndex, num_ranks: int) -> None:
    whole = list(TrainingBatches(index, _data(), seed=3, batch_size=8).epoch(1))
    ranks = [
        list(
            TrainingBatches(
                index, _data(), seed=3, batch_size=8, rank=rank, num_ranks=num_ranks
            ).epoch(1)
        )
        for rank in range(num_ranks)
    ]
    for step, batch in enumerate(whole):
        shares = [rank[step] for rank in ranks]
        assert {len(share) for share in shares} == {8 // num_ranks}
        pixels = {
            image_id: image
            for share in shares
            for image_id, image in zip(share.image_ids, share.images, strict=True)
        }
        assert set(pixels) == set(batch.image_ids)
        assert all(
            torch.equal(pixels[i], image)
            for i, image in zip(batch.image_ids, batch.images, strict=True)
        )


def test_a_batch_that_does_not_divide_by_the_number_of_workers_is_refused(
    index: CocoIndex,
) -> None:
    with pytest.raises(
        ConfigError,
        match=(
            r"training\.batch_size: must be a multiple of the number of workers, 3, got 8 images"
        ),
    ):
        TrainingBatches(index, _data(), seed=0, batch_size=8, num_ranks=3)
    with pytest.raises(ConfigError, match=r"got 22 images \(batch_size 64, 22 training images\)"):
        TrainingBatches(index, _data(), seed=0, batch_size=64, num_ranks=4)


def test_a_set_smaller_than_a_batch_is_one_batch(index: CocoIndex) -> None:
    batches = TrainingBatches(index, _data(), seed=0, batch_size=100)
    (batch,) = batches.epoch(0)
    assert len(batches) == 1
    assert sorted(batch.image_ids) == index.image_ids


def test_evaluation_covers_all_images_in_order_without_augmentation(
    index: CocoIndex,
) -> None:
    for num_workers in (0, 1):
        batches = EvaluationBatches(
            index, _data(augment=Augment(flip=1)), batch_size=8, num_workers=num_workers
        )
        loaded = list(batches)
        assert [len(batch) for batch in loaded] == [8, 8, 6]
        assert len(batches) == 3
        assert [i for batch in loaded for i in batch.image_ids] == index.image_ids
        pixels = np.asarray(Image.open(index.paths[9]).copy())
        assert np.array_equal(loaded[1].images[1].permute(1, 2, 0).numpy(), pixels)
        assert np.array_equal(loaded[1].boxes[1].numpy(), index.boxes[9])
        assert np.array_equal(loaded[1].labels[1].numpy(), index.labels[9])


def test_first_batches_are_those_of_the_evaluation(index: CocoIndex) -> None:
    evaluated = [
        first_batch_hash(batch) for batch in EvaluationBatches(index, _data(), batch_size=8)
    ]
    assert [
        first_batch_hash(batch) for batch in first_batches(index, _data(), count=2, batch_size=8)
    ] == evaluated[:2]
    assert [
        first_batch_hash(batch) for batch in first_batches(index, _data(), count=50, batch_size=8)
    ] == evaluated


def test_every_kind_of_image_is_at_the_top_left_of_a_zero_padded_batch(
    awkward: CocoFolder,
) -> None:
    index = _awkward_index(awkward)
    (batch,) = EvaluationBatches(
        index, _coco_data(resize=Resize(short_side_px=(80,), long_side_px=105)), batch_size=20
    )
    assert batch.images.shape == (9, 3, 128, 128)
    assert batch.original_sizes[5] == (60, 40)
    assert batch.image_sizes == ((70, 105),) * 5 + ((105, 70),) + ((70, 105),) * 3
    for image, (height, width) in zip(batch.images, batch.image_sizes, strict=True):
        assert image[:, height:].sum() == 0
        assert image[:, :, width:].sum() == 0
        assert (image[:, :height, :width] > 0).float().mean() > 0.5
    assert batch.boxes[5].tolist() == [[8.75, 78.75, 61.25, 96.25]]
    assert batch.boxes[4].shape == (0, 4)
    assert [boxes.dtype for boxes in batch.boxes] == [torch.float32] * 9
    assert [labels.dtype for labels in batch.labels] == [torch.int64] * 9


@pytest.mark.parametrize(("square", "padded"), [(64, 64), (100, 128)])
def test_with_square_px_every_batch_has_that_size(
    awkward: CocoFolder, square: int, padded: int
) -> None:
    data = _coco_data(resize=Resize(square_px=square))
    shapes = {
        batch.images.shape[1:]
        for batch in EvaluationBatches(_awkward_index(awkward), data, batch_size=1)
    }
    assert shapes == {(3, padded, padded)}


def test_grouping_separates_portraits_from_landscapes(awkward: CocoFolder) -> None:
    index = _awkward_index(awkward)
    index = index.subset([5, 0, 5, 1, 5, 2, 5, 3, 1])
    batches = list(TrainingBatches(index, _coco_data(), seed=0, batch_size=2).epoch(0))
    kinds = [{height > width for height, width in batch.image_sizes} for batch in batches]
    assert sorted(map(sorted, kinds)) == [[False], [False], [True], [True]]


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("damage", ["truncated", "deleted", "resized"])
def test_an_image_damaged_after_the_check_fails_the_trial_with_its_file_and_id(
    awkward: CocoFolder, num_workers: int, damage: str
) -> None:
    index = _awkward_index(awkward)
    path = awkward.images / "plain.jpg"
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "resized":
        Image.new("RGB", (50, 40)).save(path)
    for batches in (
        EvaluationBatches(index, _coco_data(), batch_size=4, num_workers=num_workers),
        TrainingBatches(index, _coco_data(), seed=0, batch_size=9, num_workers=num_workers).epoch(
            0
        ),
    ):
        with pytest.raises(TrialFailure, match=r"^bad_data: .*plain\.jpg: image 11: ") as caught:
            list(batches)
        assert caught.value.kind == "bad_data"
        assert multiprocessing.active_children() == []


def test_the_hash_of_a_batch_depends_on_every_pixel_box_and_label(index: CocoIndex) -> None:
    def loaded() -> Batch:
        return next(first_batches(index, _data(), count=1, batch_size=4))

    pixel, box, label = loaded(), loaded(), loaded()
    pixel.images[0, 0, 0, 0] += 1
    box.boxes[0][0, 0] += 0.01
    label.labels[0][0] += 1
    hashes = {first_batch_hash(batch) for batch in (loaded(), loaded(), pixel, box, label)}
    assert len(hashes) == 4


def test_to_moves_all_tensors_of_a_batch(awkward: CocoFolder) -> None:
    (batch,) = EvaluationBatches(_awkward_index(awkward), _coco_data(), batch_size=20)
    moved = batch.to(torch.device("cpu"))
    assert first_batch_hash(moved) == first_batch_hash(batch)
    assert {
        tensor.device.type for tensor in (batch.to("meta").images, *batch.to("meta").boxes)
    } == {"meta"}
    assert [boxes.shape for boxes in moved.boxes] == [boxes.shape for boxes in batch.boxes]
