"""SAM 2's training code loads an export: read_sa_1b.py EXPORT EXPECTED."""

import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from expected import MaskCounter, load_expected
from PIL import Image
from training.dataset.vos_raw_dataset import SA1BRawDataset
from training.dataset.vos_sampler import EvalSampler, RandomUniformSampler


def main(export: str, expected: str) -> None:
    """Load the listed images, and sample each as training and evaluation do, which fails without masks."""
    wanted, tally = load_expected(expected), MaskCounter()
    folder = str(Path(export) / "images")
    dataset = SA1BRawDataset(folder, folder, file_list_txt=str(Path(export) / "file_list.txt"))
    everything = SA1BRawDataset(folder, folder)
    print(f"sam2 {version('sam2')}: {len(dataset)} of {len(everything)} images have masks")
    tally.require(len(everything) == len(wanted), "the images without a list")
    found = []
    for index in range(len(dataset)):
        video, segments = dataset.get_video(index)
        found.append(video.video_id)
        ids, masks = wanted[video.video_id]
        for sampler in (EvalSampler(), RandomUniformSampler(num_frames=1, max_num_objects=3)):
            sampled = sampler.sample(video, segments)
            tally.require(len(sampled.object_ids) > 0, f"image {video.video_id}: its sample")
        tally.require(len(segments.segments) == len(ids), f"image {video.video_id}: {len(segments.segments)} masks")
        with Image.open(video.frames[0].image_path) as picture:
            tally.require(picture.size[::-1] == masks.shape[1:], f"image {video.video_id}: {picture.size}")
        loaded = segments.load(video.frames[0].frame_idx)
        for number, mask in enumerate(masks):
            tally.compare(f"mask {ids[number]}", np.asarray(loaded[number]) > 0, mask)
    tally.require(found == [id for id, (ids, _) in wanted.items() if ids], "the images")
    tally.end("sa-1b", sum(len(ids) for ids, _ in wanted.values()))


main(*sys.argv[1:])
