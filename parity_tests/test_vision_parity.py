"""The vision tower against numbers worked out elsewhere, and against itself: packing, blocks, dtypes, placement."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parity_tests.agreement import BATCH, BFLOAT16, FLOAT32, FLOAT64, assert_agrees, assert_caught
from parity_tests.checkpoints import PLACEHOLDER, prompt_with_media, random_pixels, small_config, write_checkpoint
from parity_tests.mistakes import IMAGE_MISTAKES, PACKING_MISTAKES, VIDEO_MISTAKES, half_split
from reference import vision
from reference.config import VisionConfig, preset
from reference.errors import MediaError
from reference.model import load_model
from reference.projector import PatchMergerMLP
from reference.stages import observing
from reference.vision import (
    PositionEmbedding,
    VisionMLP,
    pool_frames_and_merge,
    rotate_wide,
    rotation_2d,
    time_table,
)

pytestmark = pytest.mark.parity
CPU = torch.device("cpu")
MEDIA = [(1, 6, 4), (4, 4, 6), (1, 8, 8), (2, 2, 10), (3, 2, 2), (1, 2, 2)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("vision"), small_config(), seed=1)


@pytest.fixture(scope="module")
def model(directory: Path) -> nn.Module:
    return load_model(directory)


@pytest.fixture(scope="module")
def exact_model(directory: Path) -> nn.Module:
    return load_model(directory, torch.float64)


def position_embedding(table: Tensor) -> PositionEmbedding:
    """A position embedding with this table (rows, columns, channels)."""
    rows, columns, channels = table.shape
    config = dataclasses.replace(preset("tiny").vision, init_pos_emb_height=rows, init_pos_emb_width=columns,
                                 vt_hidden_size=channels)
    embedding = PositionEmbedding(config)
    embedding.weight = nn.Parameter(table, requires_grad=False)
    return embedding


# --- numbers worked out elsewhere ---


def test_bicubic_of_a_counting_table() -> None:
    places = position_embedding(torch.arange(16.0).view(4, 4, 1))(1, 2, 2)
    expected = torch.tensor([[2.03125, 4.21875], [10.78125, 12.96875]])
    assert_agrees("bicubic mini test", places.view(2, 2), expected, BATCH)


def bicubic(table: Tensor, h: int, w: int) -> Tensor:
    """16 taps per place, written out: a = -0.75, half-pixel centres, edges clamped, nothing antialiased."""

    def taps(new: int, old: int) -> list[list[tuple[int, float]]]:
        found = []
        for i in range(new):
            centre = (i + 0.5) * old / new - 0.5
            left = int(centre // 1)
            found.append([])
            for k in range(left - 1, left + 3):
                x, a = abs(centre - k), -0.75
                weight = (a + 2) * x**3 - (a + 3) * x**2 + 1 if x <= 1 else a * (x**3 - 5 * x**2 + 8 * x - 4)
                found[-1].append((min(max(k, 0), old - 1), weight))
        return found

    rows, columns = taps(h, table.shape[0]), taps(w, table.shape[1])
    return torch.stack([sum(u * v * table[r, c] for r, u in row for c, v in column)
                        for row in rows for column in columns])


@pytest.mark.parametrize("shape", [(8, 8), (5, 8), (8, 3)], ids=["square", "wide", "tall"])
@pytest.mark.parametrize("grid", [(4, 6), (8, 8), (2, 14), (12, 2), (16, 18)])
def test_position_table_is_resampled_bicubically_also_if_it_is_not_square(
    shape: tuple[int, int], grid: tuple[int, int]
) -> None:
    table = torch.randn(*shape, 6, dtype=torch.float64)
    assert_agrees("position table", position_embedding(table)(1, *grid), bicubic(table, *grid), FLOAT64)
    if grid != shape:
        for name in ({"align_corners": True}, {"mode": "bilinear", "align_corners": False}):
            options = {"mode": "bicubic", "align_corners": False} | name
            wrong = F.interpolate(table.permute(2, 0, 1)[None], size=grid, **options)[0].flatten(1).T
            assert_caught(f"position table: {name}", wrong, bicubic(table, *grid), FLOAT32)


def test_time_table_of_the_published_width() -> None:
    table = time_table(4, 1152)
    assert_agrees("time table row 0", table[0], torch.cat([torch.zeros(576), torch.ones(576)]), BATCH)
    expected = torch.tensor([0.841471, 0.832795, 0.824051, 0.000102, 0.540302, 0.553582, 1.000000])
    torch.testing.assert_close(table[1, [0, 1, 2, 575, 576, 577, 1151]], expected, rtol=0, atol=6e-7)
    angle = 3 * 10000 ** (-torch.arange(576, dtype=torch.float64) / 576)
    assert_agrees("time table row 3", table[3], torch.cat([angle.sin(), angle.cos()]), BATCH)


def test_an_image_has_no_time_and_the_first_frame_of_a_clip_has() -> None:
    embedding = position_embedding(torch.zeros(4, 4, 6))
    assert embedding(1, 4, 4).count_nonzero() == 0
    clip = embedding(2, 4, 4).view(2, 16, 6)
    assert_agrees("time of frame 0", clip[0, 5], torch.tensor([0.0, 0, 0, 1, 1, 1]), BATCH)
    assert_agrees("time of frame 1", clip[1, 5], time_table(2, 6)[1], BATCH)


def test_2d_rotation_of_a_counting_vector() -> None:
    """Column 3, row 2 of a picture 5 patches wide; head dimension 8."""
    cos, sin = rotation_2d(1, 4, 5, 8, CPU)
    place = 2 * 5 + 3
    vector, cos, sin = torch.arange(1.0, 9.0)[None, None], cos[place, None], sin[place, None]
    expected = torch.tensor([-1.272233, -1.838865, -4.885630, 1.063305, 4.817777, 6.147278, 6.838611, 8.138391])
    assert_agrees("2-D rotary mini test", rotate_wide(vector, cos, sin)[0, 0], expected, BATCH)
    assert_caught("2-D rotary mini test: halves", half_split(vector, cos, sin)[0, 0], expected, FLOAT32)
    swapped = [part.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) for part in (cos, sin)]
    assert_caught("2-D rotary mini test: rows first", rotate_wide(vector, *swapped)[0, 0], expected, FLOAT32)


def test_2d_rotation_repeats_for_each_frame() -> None:
    image, clip = rotation_2d(1, 4, 6, 8, CPU), rotation_2d(3, 4, 6, 8, CPU)
    for one, three in zip(image, clip, strict=True):
        assert torch.equal(three, torch.cat([one] * 3))


def test_pooling_averages_frames_and_gathers_windows() -> None:
    """Two frames of 4 x 4 patches, one-hot: the average shows which patches went where."""
    tokens = pool_frames_and_merge(torch.eye(32), [(2, 4, 4)], (2, 2))
    assert tokens.shape == (4, 4, 32)
    found = [[patch.nonzero().flatten().tolist() for patch in token] for token in tokens]
    assert found[0] == [[0, 16], [1, 17], [4, 20], [5, 21]]
    assert found[1] == [[2, 18], [3, 19], [6, 22], [7, 23]]
    assert tokens.unique().tolist() == [0.0, 0.5]


def identity_(linear: nn.Linear) -> None:
    nn.init.eye_(linear.weight)
    nn.init.zeros_(linear.bias)


@torch.no_grad()
def test_tower_and_projector_have_different_gelus() -> None:
    inputs = torch.tensor([1.0, -0.5, 3.0, 0.0])
    mlp = VisionMLP(4, 4)
    identity_(mlp.fc0)
    identity_(mlp.fc1)
    by_tanh = torch.tensor([0.8411920, -0.1542860, 2.9963627, 0.0])
    by_erf = torch.tensor([0.8413447, -0.1542688, 2.9959497, 0.0])
    assert_agrees("GELU of the tower", mlp(inputs), by_tanh, BATCH)
    config = dataclasses.replace(preset("tiny").vision, vt_hidden_size=1)
    activation = PatchMergerMLP(config, 4).proj[1]
    assert_agrees("GELU of the projector", activation(inputs), by_erf, BATCH)
    assert_caught("GELU of the projector: tanh", mlp(inputs), by_erf, BATCH)


# --- the tower against itself ---


@torch.no_grad()
def features(model: nn.Module, pixels: Tensor, grids: list[tuple[int, int, int]]) -> Tensor:
    return model.media_features(pixels, torch.tensor(grids))


def one_by_one(model: nn.Module, pixels: Tensor, grids: list[tuple[int, int, int]]) -> Tensor:
    clips = pixels.split([t * h * w for t, h, w in grids])
    return torch.cat([features(model, clip, [grid]) for clip, grid in zip(clips, grids, strict=True)])


def test_media_packed_together_are_media_one_by_one(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, _ = random_pixels(MEDIA, seed=2)
    expected = one_by_one(model, pixels, MEDIA)
    assert len(expected) == sum(h * w // 4 for _, h, w in MEDIA)
    assert_agrees("packed and single media", features(model, pixels, MEDIA), expected, BATCH)
    for name, mistake in PACKING_MISTAKES.items():
        mistake(monkeypatch, model)
        assert_caught(f"packed media: {name}", features(model, pixels, MEDIA), expected, BATCH)


@pytest.mark.parametrize("block", [1, 5, 64])
def test_query_blocks_of_patches_change_nothing(model: nn.Module, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, _ = random_pixels(MEDIA, seed=3)
    expected = features(model, pixels, MEDIA)
    monkeypatch.setattr(vision, "QUERY_BLOCK", block)
    assert_agrees("patch blocks", features(model, pixels, MEDIA), expected, BATCH)


def test_float32_tower_is_close_to_float64(model: nn.Module, exact_model: nn.Module) -> None:
    pixels, _ = random_pixels(MEDIA, seed=4)
    assert_agrees("vision float32 and float64", features(model, pixels, MEDIA), features(exact_model, pixels, MEDIA),
                  FLOAT32)


def test_bfloat16_tower_is_close_to_float32(directory: Path, model: nn.Module) -> None:
    pixels, _ = random_pixels(MEDIA, seed=4)
    out = features(load_model(directory, torch.bfloat16), pixels, MEDIA)
    assert out.dtype == torch.bfloat16
    assert_agrees("vision bfloat16 and float32", out, features(model, pixels, MEDIA), BFLOAT16)


@pytest.mark.parametrize("name", [*IMAGE_MISTAKES, *VIDEO_MISTAKES])
def test_vision_mistake_is_noticed(
    directory: Path, exact_model: nn.Module, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The float32 and float64 runs share their code, so a mistake is put into one of them."""
    pixels, _ = random_pixels(MEDIA, seed=4)
    expected, model = features(exact_model, pixels, MEDIA), load_model(directory)
    (IMAGE_MISTAKES | VIDEO_MISTAKES)[name](monkeypatch, model)
    assert_caught(f"vision float32 and float64: {name}", features(model, pixels, MEDIA), expected, FLOAT32)


def test_tower_has_gradients_everywhere(exact_model: nn.Module) -> None:
    pixels, grid_thws = random_pixels(MEDIA, seed=5)
    exact_model.zero_grad()
    exact_model.media_features(pixels, grid_thws).square().mean().backward()
    seeing = [(name, p) for name, p in exact_model.named_parameters() if not name.startswith("language_model")]
    assert [name for name, p in seeing if p.grad is None or p.grad.norm() == 0] == []


# --- in their places ---


def embedded(model: nn.Module, input_ids: Tensor, **media: Tensor) -> Tensor:
    """What the first decoder layer sees."""
    seen: dict[str, Tensor] = {}

    def record(name: str, tensor: Tensor) -> Tensor:
        seen.setdefault(name, tensor)
        return tensor

    with torch.no_grad(), observing(record):
        model(input_ids, **media)
    return seen["hidden.0"]


def test_features_take_the_placeholders_in_reading_order(model: nn.Module) -> None:
    """Two rows of a batch, several media in each: row by row, left to right, in the order of grid_thws."""
    rows = [prompt_with_media(MEDIA[:3], seed=6)[0], prompt_with_media(MEDIA[3:], seed=7)[0]]
    longest = max(map(len, rows))
    num_padding = torch.tensor([longest - len(row) for row in rows])
    input_ids = torch.stack([F.pad(row, (longest - len(row), 0), value=255) for row in rows])
    pixels, grid_thws = random_pixels(MEDIA, seed=6)
    hidden = embedded(model, input_ids, pixel_values=pixels, grid_thws=grid_thws, num_padding=num_padding)
    places = input_ids == PLACEHOLDER
    assert_agrees("placed features", hidden[places], one_by_one(model, pixels, MEDIA), BATCH)
    words = model.language_model.model.embed_tokens(input_ids[~places])
    assert torch.equal(hidden[~places], words)


@torch.no_grad()
def test_batch_with_pictures_is_each_row_alone(model: nn.Module) -> None:
    rows = [prompt_with_media(MEDIA[:3], seed=6)[0], prompt_with_media(MEDIA[3:], seed=7)[0]]
    longest = max(map(len, rows))
    num_padding = torch.tensor([longest - len(row) for row in rows])
    input_ids = torch.stack([F.pad(row, (longest - len(row), 0), value=255) for row in rows])
    pixels, grid_thws = random_pixels(MEDIA, seed=6)
    out = model(input_ids, pixel_values=pixels, grid_thws=grid_thws, num_padding=num_padding)
    first = sum(t * h * w for t, h, w in MEDIA[:3])
    parts = [(pixels[:first], grid_thws[:3]), (pixels[first:], grid_thws[3:])]
    for row, ids, (some_pixels, some_grids) in zip(out, rows, parts, strict=True):
        alone = model(ids[None], pixel_values=some_pixels, grid_thws=some_grids)[0]
        assert_agrees("batch with pictures and row alone", row[-len(ids):], alone, BATCH)


@torch.no_grad()
def test_pictures_before_a_cache_are_remembered(model: nn.Module) -> None:
    input_ids, (pixels, grid_thws) = prompt_with_media(MEDIA, seed=8), random_pixels(MEDIA, seed=8)
    expected = model(input_ids, pixel_values=pixels, grid_thws=grid_thws)
    cache = model.new_cache(1)
    model(input_ids[:, :-3], pixel_values=pixels, grid_thws=grid_thws, cache=cache, last_only=True)
    assert_agrees("cache after pictures", model(input_ids[:, -3:], cache=cache), expected[:, -3:], FLOAT32)


@pytest.mark.parametrize("change", [-1, 1])
def test_wrong_number_of_placeholders_is_refused(model: nn.Module, change: int) -> None:
    pixels, grid_thws = random_pixels([(1, 4, 4)])
    input_ids = torch.full((1, 4 + change), PLACEHOLDER)
    with pytest.raises(MediaError, match=f"{4 + change} media placeholders for 4 media tokens"):
        model(input_ids, pixel_values=pixels, grid_thws=grid_thws)


@pytest.mark.parametrize(
    ("pixels", "grids", "complaint"),
    [
        (torch.zeros(15, 3, 14, 14), [[1, 3, 5]], "multiples of 2 x 2"),
        (torch.zeros(24, 3, 14, 14), [[1, 4, 4]], "16 patches but pixel_values hold 24"),
        (torch.zeros(20, 3, 14, 14), [[5, 2, 2]], "5 frames, expected 1 to 4"),
        (torch.zeros(4, 3, 12, 14), [[1, 2, 2]], "expected floats"),
        (torch.zeros(4, 3, 14, 14), [[2, 2]], "int64 [media, 3]"),
    ],
    ids=["odd grid", "too many patches", "too many frames", "wrong patch size", "no frames in the grid"],
)
def test_media_that_do_not_fit_are_refused(model: nn.Module, pixels: Tensor, grids: list, complaint: str) -> None:
    with pytest.raises(MediaError, match=re.escape(complaint)):
        model.media_features(pixels, torch.tensor(grids))
    with pytest.raises(MediaError, match="belong together"):
        model(torch.tensor([[PLACEHOLDER]]), pixel_values=pixels)


def test_published_vision_sizes_follow_from_the_preset() -> None:
    config: VisionConfig = preset("kimi-k2.5").vision
    assert (config.head_dim, config.merged_size) == (72, 4608)
