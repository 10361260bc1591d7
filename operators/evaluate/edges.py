"""Edges from the model's masks, and scores against true boundaries (SAM paper, Sections 7.2 and D.2).

Edge detection from the model's masks (SAM paper, Sections 7.2 and D.2), and scores against true boundaries.

The scores over several images (ODS, OIS, AP, and R50) are computed from counts at each threshold, as in the BSDS
benchmark.

Boundaries of label maps, edge thinning, and one-to-one matching of edge pixels within a tolerance.

The functions follow the BSDS benchmark (Martin, Fowlkes and Malik, PAMI 2004; Arbeláez et al., PAMI 2011).
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching, min_weight_full_bipartite_matching

from segmint.infra.arrays import Bools, Bytes, Floats, Floats32, Ints
from segmint.model.automatic.candidates import nms
from segmint.model.automatic.crops import Crop, crop_points
from segmint.model.automatic.proposals import chunks_of, measure, propose
from segmint.model.automatic.settings import MaskSettings
from segmint.model.automatic.tiled_upscaling import upscaling_of
from segmint.model.sam.predictor import Embedding, Predictor

Edges = Bools
"""Edge pixels, (height, width) bool."""

LabelMap = Ints
"""A number for each pixel, (height, width) int64."""

_NEIGHBORS = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))
"""Offsets (dy, dx) of a pixel's neighbors in Guo and Hall's order: east first, then counterclockwise."""


def label_boundaries(labels: LabelMap) -> Edges:
    """Return the thinned boundaries between the numbers of a label map, (height, width).

    A pixel is on a boundary if its neighbor to the right, below, or diagonally below right has a different number.
    """
    edges = np.zeros(labels.shape, dtype=np.bool_)
    edges[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edges[:-1] |= labels[:-1] != labels[1:]
    edges[:-1, :-1] |= labels[:-1, :-1] != labels[1:, 1:]
    return thin(edges)


def near_numbers(labels: LabelMap, numbers: Collection[int], distance: float) -> Edges:
    """Return the pixels of a label map with one of these numbers, and the pixels within `distance` pixels of them."""
    there = np.isin(labels, list(numbers))
    if not there.any():
        return there
    return cv2.distanceTransform((~there).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= distance


def thin(edges: Edges) -> Edges:
    """Thin edges to lines of one pixel, keeping ends and connections (Guo and Hall, CACM 32(3), 1989, algorithm A1).

    The result equals MATLAB's `bwmorph(edges, "thin", inf)`, which the benchmark uses.
    """
    thinned = edges.astype(np.uint8)
    while True:
        before = thinned
        for removable in _REMOVABLE:
            codes = cv2.filter2D(thinned, cv2.CV_16U, _WEIGHTS, borderType=cv2.BORDER_CONSTANT)
            thinned = thinned & ~removable[codes]
        if np.array_equal(before, thinned):
            return thinned.view(np.bool_)


def match_edges(found: Edges, truth: Edges, tolerance: float) -> tuple[Edges, Edges]:
    """Match pixels of found edges one to one with pixels of true edges, at most `tolerance` pixels apart.

    The matching contains as many pairs as possible. Among all such matchings, it has the minimum total distance.
    Returns two masks, (height, width) bool: the found pixels and the true pixels that are matched.
    """
    count, others = int(np.count_nonzero(found)), int(np.count_nonzero(truth))
    if count > others:  # the run time grows with the first argument
        return match_edges(truth, found, tolerance)[::-1]
    rows, columns, distances = _pairs(found, truth, tolerance)
    # A pixel of the first side may remain unmatched, but this costs more than any possible saving in distance.
    alone = np.arange(count)
    costs = np.concatenate([distances + 1, np.full(count, count * (tolerance + 1) + 1)])
    graph = csr_array(
        (costs, (np.concatenate([rows, alone]), np.concatenate([columns, others + alone]))),
        shape=(count, others + count),
    )
    partner = min_weight_full_bipartite_matching(graph)[1] if count else alone
    return _marked(found, np.flatnonzero(partner < others)), _marked(truth, partner[partner < others])


def count_matches(found: Edges, truth: Edges, tolerance: float) -> int:
    """Return the number of pairs that `match_edges` finds. This is many times faster, because it ignores distances."""
    count, others = int(np.count_nonzero(found)), int(np.count_nonzero(truth))
    if count > others:
        return count_matches(truth, found, tolerance)
    rows, columns, _ = _pairs(found, truth, tolerance)
    graph = csr_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(count, others))
    return int(np.count_nonzero(maximum_bipartite_matching(graph, perm_type="column") >= 0))


def _pairs(found: Edges, truth: Edges, tolerance: float) -> tuple[Ints, Ints, Floats]:
    """Find all pairs of a found pixel and a true pixel within the tolerance.

    Returns three arrays: the indices of the found pixels and of the true pixels, both in row order, and the distances.
    """
    height, width = found.shape
    reach = int(tolerance)
    numbers = np.full((height + 2 * reach, width + 2 * reach), -1, dtype=np.int64)
    inner = numbers[reach : reach + height, reach : reach + width]
    inner[truth] = np.arange(np.count_nonzero(truth))
    y, x = np.nonzero(found)
    rows: list[Ints] = [np.zeros(0, np.int64)]
    columns: list[Ints] = [np.zeros(0, np.int64)]
    distances: list[Floats] = [np.zeros(0)]
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            distance = float(np.hypot(down, right))
            if distance <= tolerance:
                near = numbers[y + down + reach, x + right + reach]
                pairs = np.flatnonzero(near >= 0)
                rows.append(pairs)
                columns.append(near[pairs])
                distances.append(np.full(len(pairs), distance))
    return np.concatenate(rows), np.concatenate(columns), np.concatenate(distances)


def _marked(edges: Edges, chosen: Ints) -> Edges:
    marked = np.zeros(edges.shape, dtype=np.bool_)
    y, x = np.nonzero(edges)
    marked[y[chosen], x[chosen]] = True
    return marked


def _removable() -> tuple[Bytes, Bytes]:
    """Return two lookup tables, (256,), one for each half of a thinning pass.

    A table states whether the pass removes a pixel, given the code of the pixel's neighbors.
    """
    codes = np.arange(256)
    x = [(codes >> bit & 1).astype(bool) for bit in range(8)]  # Guo and Hall's x1 to x8, indexed from 0
    around = [x[index % 8] for index in range(9)]
    crossings = sum((~around[i] & (around[i + 1] | around[i + 2])).astype(int) for i in range(0, 8, 2))
    first = sum((around[i] | around[i + 1]).astype(int) for i in range(0, 8, 2))
    second = sum((around[i + 1] | around[i + 2]).astype(int) for i in range(0, 8, 2))
    fewest = np.minimum(first, second)
    both = (crossings == 1) & (fewest >= 2) & (fewest <= 3)
    upper = ~((x[1] | x[2] | ~x[7]) & x[0])
    lower = ~((x[5] | x[6] | ~x[3]) & x[4])
    return (both & upper).astype(np.uint8), (both & lower).astype(np.uint8)


def _weights() -> Floats32:
    weights = np.zeros((3, 3), dtype=np.float32)
    for bit, (down, right) in enumerate(_NEIGHBORS):
        weights[1 + down, 1 + right] = 1 << bit
    return weights


_REMOVABLE = _removable()
_WEIGHTS = _weights()


TOLERANCE = 0.0075
"""Maximum distance between a found edge and a true edge, as a share of the diagonal, as in the BSDS benchmark."""

THRESHOLDS = 99
"""Number of thresholds, evenly spaced from 0.01 to 0.99, as in the BSDS benchmark."""

_DRAWN = 4  # number of masks drawn at once; each takes 4 bytes per pixel
_STEPS = 100  # number of steps between two thresholds in the search for the best one
_RECALLS = np.linspace(0, 1, 101)
_HALF = 0.5
_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], dtype=np.uint8)

EdgeMap = Floats32
"""Strength of the edges, (height, width) float32 from 0 to 1."""

Curve = NDArray[Any]


def edge_settings(points_per_side: int = 16) -> MaskSettings:
    """Return the paper's settings: no crops, no filter by predicted IoU or stability, and NMS at 0.7 as usual.

    The grid contains `points_per_side` points per side. With the paper's value, 16, the model draws 768 masks before
    NMS.
    """
    return MaskSettings.official(points_per_side=points_per_side, pred_iou_thresh=0.0, stability_score_thresh=0.0)


def thresholds(count: int = THRESHOLDS) -> Floats:
    """Return `count` evenly spaced thresholds between 0 and 1, both excluded, (count,)."""
    return np.linspace(1 / (count + 1), 1 - 1 / (count + 1), count).astype(np.float64)


@dataclass(frozen=True)
class EdgeCounts:
    """Numbers of an image's edge pixels at each of K thresholds, (K,) int64 each.

    Attributes:
        found_matched: found pixels that match a true edge of at least one annotator.
        found: all found pixels.
        true_matched: true pixels that match a found edge, summed over annotators.
        true: all true pixels, summed over annotators.
    """

    found_matched: Ints
    found: Ints
    true_matched: Ints
    true: Ints


def ignored_pixels(maps: Sequence[LabelMap], ignore: Collection[int], tolerance: float) -> Edges:
    """Return the pixels within the tolerance of an ignored number in any label map. Adjacent pixels always count."""
    pixels = max(_pixels(tolerance, maps[0].shape), math.sqrt(2))
    ignored: Edges = np.any([near_numbers(labels, ignore, pixels) for labels in maps], axis=0)
    return ignored


def count_edges(
    edges: EdgeMap,
    truths: Sequence[Edges],
    cuts: Floats,
    tolerance: float,
    ignored: Edges | None = None,
) -> EdgeCounts:
    """Match an edge map with the thinned boundaries of each annotator, at each threshold.

    `cuts` (K,) contains the thresholds in ascending order. `tolerance` is a share of the diagonal. Where `ignored`,
    (height, width) bool, is true, neither found nor true pixels count.
    """
    if ignored is not None:
        edges, truths = np.where(ignored, np.float32(0), edges), [truth & ~ignored for truth in truths]
    pixels = _pixels(tolerance, edges.shape)
    counts = np.zeros((4, len(cuts)), dtype=np.int64)
    counts[3] = sum(int(np.count_nonzero(truth)) for truth in truths)
    last: Edges | None = None
    for index, cut in enumerate(cuts):
        found = edges >= cut
        if last is not None and np.array_equal(found, last):
            counts[:3, index] = counts[:3, index - 1]
            continue
        last = found
        counts[:3, index] = _count_at(thin(found), truths, pixels)
    return EdgeCounts(*counts)


def _pixels(tolerance: float, shape: tuple[int, ...]) -> float:
    """Convert a share of the diagonal to pixels."""
    return tolerance * math.hypot(*shape)


def _count_at(found: Edges, truths: Sequence[Edges], pixels: float) -> tuple[int, int, int]:
    total = int(np.count_nonzero(found))
    if len(truths) == 1:
        pairs = count_matches(found, truths[0], pixels)
        return pairs, total, pairs
    # With several annotators, it matters which found pixels match, because each of them counts only once.
    matched, pairs = np.zeros(found.shape, dtype=np.bool_), 0
    for truth in truths:
        of_found, of_truth = match_edges(found, truth, pixels)
        matched |= of_found
        pairs += int(np.count_nonzero(of_truth))
    return int(np.count_nonzero(matched)), total, pairs


@torch.inference_mode()
def find_edges(predictor: Predictor, embedding: Embedding, settings: MaskSettings) -> EdgeMap:
    """Return the edges of an image, in the image's frame.

    The model draws masks for a grid of points, and only NMS filters them. Each pixel just outside a mask receives the
    Sobel gradient of that mask's probabilities (the sigmoid of the logits); if several masks qualify, the strongest
    gradient wins. The result is normalized, then thinned by `suppress`.
    """
    strength = np.zeros(embedding.frame_size, dtype=np.float32)
    across, down = np.zeros_like(strength), np.zeros_like(strength)
    logits = _masks(predictor, embedding, settings)
    for start in range(0, len(logits), _DRAWN):
        drawn = predictor.upscale(logits[start : start + _DRAWN, None], embedding)[:, 0]
        for one, probabilities in zip(drawn.gt(0).cpu().numpy(), drawn.sigmoid().cpu().numpy(), strict=True):
            _draw_outline(one, probabilities, strength, across, down)
    if (span := strength.max() - strength.min()) > 0:
        strength = (strength - strength.min()) / span
    return suppress(strength, across, down)


def _masks(predictor: Predictor, embedding: Embedding, settings: MaskSettings) -> torch.Tensor:
    """Draw masks for each point of the grid. Return their low-resolution logits after NMS, (N, 256, 256)."""
    height, width = embedding.frame_size
    crop = Crop(0, (0, 0, width, height))
    upscaling, plan = upscaling_of(predictor, embedding), predictor.plan_points(embedding)
    points = crop_points(crop, settings.grid_of_layer(0))
    found, boxes, scores = [], [], []
    for chunk in chunks_of(points, settings.chunk_on("cpu")):
        proposals, _ = propose(predictor, embedding, plan, chunk, settings)
        # There are no filters, so `measure` returns all proposals, in order.
        measured, _ = measure(upscaling, proposals, crop, embedding.frame_size, settings)
        found.append(proposals.low_res_logits)
        boxes.append(measured.boxes)
        scores.append(measured.predicted_iou)
    kept = nms(np.concatenate(boxes), np.concatenate(scores), settings.box_nms_thresh)
    logits = torch.cat(found)
    return logits[torch.from_numpy(kept).to(logits.device)]


def _draw_outline(
    mask: Bools,
    probabilities: Floats32,
    strength: Floats32,
    across: Floats32,
    down: Floats32,
) -> None:
    """Write a mask's gradient to three maps, all (H, W), where it is stronger than the gradients of earlier masks.

    Only a window is processed. It contains the mask's box, the mask's outer boundary, and the neighbors that the filter
    needs.
    """
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    if not width:
        return
    window = slice(max(0, y - 2), y + height + 2), slice(max(0, x - 2), x + width + 2)
    pixels = np.ascontiguousarray(mask[window]).view(np.uint8)
    outside = (cv2.dilate(pixels, _CROSS) > pixels).astype(bool)
    values = np.ascontiguousarray(probabilities[window])
    gradient_x = cv2.Sobel(values, cv2.CV_32F, 1, 0, borderType=cv2.BORDER_REPLICATE)
    gradient_y = cv2.Sobel(values, cv2.CV_32F, 0, 1, borderType=cv2.BORDER_REPLICATE)
    size = np.hypot(gradient_x, gradient_y)
    stronger = outside & (size > strength[window])
    for whole, part in ((strength, size), (across, gradient_x), (down, gradient_y)):
        whole[window][stronger] = part[stronger]


def suppress(strength: EdgeMap, across: Floats32, down: Floats32) -> EdgeMap:
    """Keep the pixels that are no weaker than their two neighbors along the gradient (Canny, PAMI 8(6), 1986).

    `across` and `down` are the x and y components of the gradient at each pixel. Neighbors along the gradient usually
    lie between pixels, so their strength is interpolated. If two neighboring pixels are equally strong, one of them is
    kept.
    """
    y, x = np.nonzero(strength)
    right, below = across[y, x].astype(np.float64), down[y, x].astype(np.float64)
    length = np.maximum(np.abs(right), np.abs(below))
    # Give opposite gradients the same orientation, so that exactly one of two equal neighbors is kept.
    turned = (right < 0) | ((right == 0) & (below < 0))
    step = np.where(turned, -1, 1) / np.where(length > 0, length, 1)
    right, below = right * step, below * step
    values = strength[y, x]
    ahead, behind = (
        map_coordinates(strength, (y + sign * below, x + sign * right), order=1, mode="constant") for sign in (1, -1)
    )
    kept = (values > ahead) & (values >= behind)
    thinned = np.zeros_like(strength)
    thinned[y[kept], x[kept]] = values[kept]
    return thinned


@dataclass(frozen=True)
class EdgeScores:
    """The benchmark's four metrics and the curve from which they are computed.

    Attributes:
        ods: the best F-measure with the same threshold for all images ("optimal dataset scale").
        ods_threshold: the threshold of `ods`.
        ois: the F-measure if each image uses its best threshold ("optimal image scale").
        ap: average precision over recalls from 0 to 1 with a defined precision; None if all recalls are equal.
        r50: recall at a precision of 0.5; None if precision is never that high.
        precision, recall: (K,), at each threshold.
    """

    ods: float
    ods_threshold: float
    ois: float
    ap: float | None
    r50: float | None
    precision: Curve
    recall: Curve


def edge_scores(images: Sequence[EdgeCounts], cuts: Floats) -> EdgeScores:
    """Compute the scores over one or more images; `cuts` (K,) contains the thresholds of their counts, ascending."""
    stacked = stack(images)
    return scores_of_sums(stacked.sum(axis=0), at_best_thresholds(stacked).sum(axis=0), cuts)


def stack(images: Sequence[EdgeCounts]) -> Ints:
    """Stack the counts of I images to (I, 4, K), in the order of the fields of `EdgeCounts`."""
    return np.array([[each.found_matched, each.found, each.true_matched, each.true] for each in images])


def at_best_thresholds(counts: Ints) -> Ints:
    """Select each image's counts at the threshold that is best for this image: (I, 4, K) to (I, 4)."""
    best = np.array([np.argmax(_f_measure(*_precision_recall(each))) for each in counts], dtype=np.int64)
    return counts[np.arange(len(counts)), :, best]


def scores_of_sums(sums: Curve, at_best: Curve, cuts: Curve) -> EdgeScores:
    """Compute the scores from two sums over images, both in the order of the fields of `EdgeCounts`.

    `sums` (4, K) contains the summed counts at each threshold. `at_best` (4,) contains the sum of the counts that
    `at_best_thresholds` selects.
    """
    precision, recall = _precision_recall(sums)
    ods, ods_threshold = _best(cuts, precision, recall)
    ois = float(_f_measure(*_precision_recall(at_best)))
    ap, r50 = _average_precision(precision, recall), _recall_at_half(precision, recall)
    return EdgeScores(ods, ods_threshold, ois, ap, r50, precision, recall)


def _precision_recall(counts: NDArray[Any]) -> tuple[Curve, Curve]:
    """Compute precision and recall from counts (4, …); both are 0 where their denominator is 0."""
    found_matched, found, true_matched, true = counts
    return found_matched / np.maximum(found, 1), true_matched / np.maximum(true, 1)


def _f_measure(precision: Curve, recall: Curve) -> Curve:
    total = precision + recall
    score: Curve = 2 * precision * recall / np.where(total > 0, total, 1)
    return score


def _best(cuts: Curve, precision: Curve, recall: Curve) -> tuple[float, float]:
    """Return the best F-measure and its threshold, with linear interpolation between the points of the curve."""
    share = np.linspace(0, 1, _STEPS)
    if len(cuts) == 1:
        return float(_f_measure(precision, recall)[0]), float(cuts[0])
    between = [share * values[1:, None] + (1 - share) * values[:-1, None] for values in (precision, recall, cuts)]
    scores = _f_measure(between[0], between[1])
    place = np.unravel_index(np.argmax(scores), scores.shape)
    return float(scores[place]), float(between[2][place])


def _average_precision(precision: Curve, recall: Curve) -> float | None:
    recalls, first = np.unique(recall, return_index=True)
    if len(recalls) < 2:
        return None
    # The benchmark sums 101 values and divides by 100.
    return float(np.interp(_RECALLS, recalls, precision[first], left=0, right=0).sum() / (len(_RECALLS) - 1))


def _recall_at_half(precision: Curve, recall: Curve) -> float | None:
    precisions, first = np.unique(precision, return_index=True)
    if precisions[-1] < _HALF:
        return None
    return float(np.interp(max(precisions[0], _HALF), precisions, recall[first]))
