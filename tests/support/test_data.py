"""Sets of images: broken ones left out, right splits, resumable batches.

    pytest tests/test_data.py
"""

import numpy as np
import pytest
import torch
from conftest import grey_levels, numbered, one_line, pack, png_that_claims, save
from PIL import Image

from support import images as data
from support.files import UserError
from support.images import batches, in_order, load_images

pytestmark = pytest.mark.usefixtures("cache")  # no test reads or writes the user's own


@pytest.fixture
def half_broken(tmp_path):
    """Two good pictures, of grey 10 and 20, five bad ones, and files that are no pictures at all."""
    folder = tmp_path / "half"
    save(folder / "b.png", 10)
    save(folder / "y.jpg", 20)
    (folder / "a_empty.png").write_bytes(b"")
    (folder / "c_text.jpg").write_text("no picture")
    (folder / "d_cut.jpg").write_bytes(save(folder / "y.jpg", 20, (64, 64)).read_bytes()[:400])
    (folder / "e_bomb.png").write_bytes(png_that_claims(20000, 20000))
    (folder / "z.heic").write_bytes(b"a format that Pillow does not read")
    for other in ("notes.txt", ".hidden.png", "Thumbs.db", "__MACOSX/b.png", ".git/b.png"):
        (folder / other).parent.mkdir(exist_ok=True)
        (folder / other).write_text("ignored")
    return folder


def test_skipped_files_are_named_with_a_reason(half_broken):
    images = load_images(half_broken, size=4)
    assert grey_levels(images.pixels) == [10, 20] and len(images) == 2 and images.names == ["b.png", "y.jpg"]
    reasons = dict(images.skipped)
    assert list(reasons) == ["a_empty.png", "c_text.jpg", "d_cut.jpg", "e_bomb.png", "z.heic"]
    assert reasons["a_empty.png"] == "empty file" and "truncated" in reasons["d_cut.jpg"].lower()
    assert reasons["e_bomb.png"] == "400 megapixels, and the limit is 178; --max_megapixels raises it"
    assert "0x" not in reasons["c_text.jpg"]


def test_labels_stay_with_their_pictures_when_some_are_skipped(tmp_path):
    for kind, level in (("a", 1), ("b", 2)):
        for i in range(3):
            save(tmp_path / "d/train" / kind / f"{i}.png", level)
        save(tmp_path / "d/test" / kind / "0.png", level)
    (tmp_path / "d/train/a/1.png").write_text("broken")
    images = load_images(tmp_path / "d", size=4)
    assert grey_levels(images.pixels) == [1, 1, 2, 2, 2] and images.labels.tolist() == [0, 0, 1, 1, 1]


def test_number_of_threads_does_not_matter(half_broken, monkeypatch):
    numbered(half_broken / "more", 150)
    one, many = [], []
    for cores, result in ((1, one), (7, many)):
        monkeypatch.setattr(data, "cores", lambda cores=cores: cores)
        images = load_images(half_broken, size=4)
        result += [images.pixels, images.names, images.skipped]
    assert torch.equal(one[0], many[0]) and one[1:] == many[1:]


def test_training_window_depends_on_the_seed_alone_and_test_is_centred(tmp_path):
    """40 pictures of 64×4 with a grey ramp, whose mean tone tells the window's place; test: the middle."""
    ramp = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) * 4, (4, 1)))
    for i in range(40):
        (tmp_path / "d").mkdir(exist_ok=True)
        ramp.save(tmp_path / f"d/{i:02}.png")
    one, same, other = (load_images(tmp_path / "d", size=4, seed=seed).pixels.float().mean((1, 2, 3))
                        for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert one.min() < 60 and one.max() > 190  # false alarm, were the seed not fixed: 2 · 0.8^40 < 3 / 10,000
    middle = load_images(tmp_path / "d", "test", size=4).pixels.float().mean((1, 2, 3))
    assert middle.tolist() == [(30 + 31 + 32 + 33) * 4 / 4] * 4


def test_a_flat_held_out_split_is_named(tmp_path, capsys):
    """val/ as the official ImageNet archive unpacks it: no class folders.  The training labels stay."""
    for name in ("train/a/1.png", "train/b/1.png", "val/1.png", "val/2.png"):
        save(tmp_path / "d" / name, 9)
    train, test = data.load_splits(tmp_path / "d", 4, 0)
    assert train.labels.tolist() == [0, 1] and test.labels is None and len(test) == 2
    assert "the test split has images without a class" in capsys.readouterr().out


@pytest.mark.parametrize("streamed", [False, True])
def test_a_set_whose_held_out_pictures_are_broken(tmp_path, monkeypatch, capsys, streamed):
    """Of three classes of two the first is held out each time, and broken: the others can be trained on."""
    for i, kind in enumerate("abc"):
        save(tmp_path / "d" / kind / "1.png", i)
        (tmp_path / "d" / kind / "0.png").write_text("broken")
    if streamed:
        monkeypatch.setattr(data, "MEMORY_LIMIT", 0)
    train, test = data.load_splits(tmp_path / "d", 4, 0)
    assert train.labels.tolist() == [0, 1, 2] and test.labels is None
    assert grey_levels(torch.cat(list(in_order(test, 9, workers=0)))) == [0, 1, 2]
    assert "no k-NN, and pca.png of training images" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------
# Batches


@pytest.fixture
def ten(tmp_path):
    """Ten pictures in memory, number i of grey level i."""
    return load_images(numbered(tmp_path / "ten", 10), size=4)


def take(stream, n):
    return [grey_levels(next(stream)) for _ in range(n)]


def test_resumed_stream_goes_on_as_if_unbroken(ten):
    whole = take(batches(ten, 3, seed=5), 12)
    for start in (1, 3, 4, 11):
        assert take(batches(ten, 3, seed=5, start=start), 12 - start) == whole[start:]
    assert whole != take(batches(ten, 3, seed=6), 12)


@pytest.mark.parametrize("batch", [1, 3, 10, 23])  # 23 > 10: a batch then holds several epochs
def test_each_epoch_has_each_image_once_in_a_new_order(ten, batch):
    flat = [i for rows in take(batches(ten, batch), -(-40 // batch)) for i in rows]
    epochs = [flat[i:i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4  # false alarm 6 / 10!


def test_batches_have_shape_and_type(ten):
    pixels = next(batches(ten, 3))
    assert pixels.shape == (3, 3, 4, 4) and pixels.dtype == torch.uint8


def test_shards_partition_the_global_batch(ten):
    whole = take(batches(ten, 6, seed=1, start=2), 5)
    parts = [take(batches(ten, 2, seed=1, start=2, shard=(rank, 3)), 5) for rank in range(3)]
    assert [sum(rows, []) for rows in zip(*parts)] == whole


def test_in_order_is_the_order_of_the_labels(ten):
    assert [len(x) for x in in_order(ten, 4)] == [4, 4, 2]
    assert grey_levels(torch.cat(list(in_order(ten, 4)))) == list(range(10))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_streaming_equals_memory_for_any_number_of_workers(labelled, workers, monkeypatch):
    memory = load_images(labelled, size=4, seed=3)
    monkeypatch.setattr(data, "MEMORY_LIMIT", 0)
    for suffix in ("", ".zip") if workers == 2 else ("",):
        streamed = load_images(pack(labelled, suffix) if suffix else labelled, size=4, seed=3)
        assert streamed.pixels is None and len(streamed) == 6 and torch.equal(streamed.labels, memory.labels)
        torch.manual_seed(0)
        state = torch.random.get_rng_state()
        for a, b, _ in zip(batches(memory, 3), batches(streamed, 3, workers=workers), range(2)):  # of the first epoch
            assert torch.equal(a, b)
        assert torch.equal(torch.cat(list(in_order(streamed, 4, workers=workers))), memory.pixels)
        assert torch.equal(torch.random.get_rng_state(), state)  # other random draws do not depend on it


@pytest.mark.parametrize("workers", [0, 2])
def test_a_streamed_picture_is_seen_through_another_window_in_each_epoch(tmp_path, workers, monkeypatch):
    """A grey ramp of 64×4, whose mean tone tells the window's place: eight epochs, and a run resumed in the fifth."""
    (tmp_path / "d").mkdir()
    for i in range(3):
        Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) * 4, (4, 1))).save(tmp_path / f"d/{i}.png")
    monkeypatch.setattr(data, "MEMORY_LIMIT", 0)
    images = load_images(tmp_path / "d", size=4)
    whole = [x.float().mean((1, 2, 3)) for x, _ in zip(batches(images, 3, workers=workers), range(8))]
    assert len(set(torch.stack(whole).flatten().tolist())) > 15  # of 24, of 61 places each
    resumed = [x.float().mean((1, 2, 3)) for x, _ in zip(batches(images, 3, start=5, workers=workers), range(3))]
    assert torch.equal(torch.stack(resumed), torch.stack(whole[5:]))
    test = load_images(tmp_path / "d", "test", size=4)
    assert next(in_order(test, 1, workers=0)).float().mean() == (30 + 31 + 32 + 33) * 4 / 4


def test_a_sample_of_a_streamed_split_is_drawn_once_and_kept(labelled, monkeypatch):
    """Three of six, with their labels, at the size asked for; broken ones are named with the split's."""
    whole = load_images(labelled, size=8)
    assert data.in_memory(whole, 3, 4) is whole
    monkeypatch.setattr(data, "MEMORY_LIMIT", 6 * 3 * 8 * 8 - 1)
    images = load_images(labelled, size=8)
    sample = data.in_memory(images, 3, 4)
    assert images.pixels is None and sample.pixels.shape == (3, 3, 4, 4) and data.in_memory(images, 3, 4) is sample
    level = dict(zip(whole.names, grey_levels(whole.pixels)))
    label = dict(zip(whole.names, whole.labels.tolist()))
    assert grey_levels(sample.pixels) == pytest.approx([level[name] for name in sample.names], abs=3)  # other windows
    assert sample.labels.tolist() == [label[name] for name in sample.names]
    (labelled / "train/a/1.png").write_text("broken")
    images = load_images(labelled, size=8)
    assert len(data.in_memory(images, 99, 4)) == 5 and [name for name, _ in images.skipped] == ["train/a/1.png"]
    monkeypatch.setattr(data, "MEMORY_LIMIT", 2 * 3 * 4 * 4)
    assert len(data.in_memory(load_images(labelled, size=8), 99, 4)) == 2  # as many as memory takes


@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_replaces_a_broken_image_by_the_next_and_reports_it_once(tmp_path, workers, monkeypatch):
    numbered(tmp_path / "d", 4)
    for i in (2, 3):
        (tmp_path / f"d/00{i}.png").write_text("broken")
    monkeypatch.setattr(data, "MEMORY_LIMIT", 0)
    images = load_images(tmp_path / "d", size=4)
    assert len(images) == 4 and images.skipped == []
    epochs = take(batches(images, 4, workers=workers), 3)
    assert all(sorted(epoch) == [0, 0, 0, 1] for epoch in epochs)  # 2 and 3 give way to 0, which follows 3
    assert sorted(name for name, _ in images.skipped) == ["002.png", "003.png"]


def test_streaming_a_set_without_a_readable_image_fails_at_once(tmp_path, monkeypatch):
    numbered(tmp_path / "d", 2)
    for path in (tmp_path / "d").iterdir():
        path.write_text("broken")
    monkeypatch.setattr(data, "MEMORY_LIMIT", 0)
    with pytest.raises(UserError, match="none of the 2 images"):
        load_images(tmp_path / "d", size=4)


def test_no_data_is_not_the_folder_one_is_in():
    with pytest.raises(UserError, match="there is no --data: give a folder") as error:
        load_images("")
    one_line(error)
