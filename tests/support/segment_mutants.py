"""Faults in what overlaps and repeats in the segment stage, and in its ledger."""

from tests.support.mutant import Mutant

SEGMENT_MUTANTS = (
    Mutant(
        "rows of other calls lost in a death",
        "infra/row_ledger.py",
        "rows = [row for row, its_entry in self._entries.items() if its_entry in entries]",
        "rows = [row for row, its_entry in self._entries.items() if its_entry == visit]",
        "tests/infra/test_row_ledger.py",
    ),
    Mutant(
        "a row tried alone is not recorded",
        "infra/row_ledger.py",
        "if ordinal in self._alone and not alone:",
        "if ordinal in self._alone:",
        "tests/infra/test_row_ledger.py",
    ),
    Mutant(
        "company forgotten with its window",
        "pipeline/building/execution/quarantine.py",
        "self._died_with_others.update(ledger.alone())",
        "self._died_with_others = set(ledger.alone())",
        "tests/pipeline/building/execution/test_quarantine.py",
    ),
    Mutant(
        "masks go to another row",
        "operators/segment/segment.py",
        "for row, result in zip(rows, started, strict=True)",
        "for row, result in zip(rows, started[::-1], strict=True)",
        "tests/operators/segment/test_deaths.py",
    ),
    Mutant(
        "deadline counts the wait for a turn",
        "operators/segment/segment.py",
        (
            "        if task.entry is not None:\n"
            '            task.entry.begin(task.row["ordinal"])\n'
            "        with self._watched(task):\n"
            "            return self._decode(task.row)"
        ),
        (
            "        with self._watched(task):\n"
            "            if task.entry is not None:\n"
            '                task.entry.begin(task.row["ordinal"])\n'
            "            return self._decode(task.row)"
        ),
        "tests/operators/segment/test_deaths.py",
    ),
    Mutant(
        "two threads own the device",
        "operators/segment/overlap.py",
        "self._device = _pool(min(1, threads.decoders)",
        "self._device = _pool(min(2, threads.decoders)",
        "tests/operators/segment/test_overlap.py",
    ),
    Mutant(
        "points decoded on the crop before",
        "model/automatic/on_device/crops.py",
        "        self._features.copy_(features)\n",
        "        self._features.copy_(self._features)\n",
        "tests/model/automatic/on_device/test_crops.py",
    ),
    Mutant(
        "a library from other sources is loaded",
        "model/kernels/cpu/library.py",
        "if sources and hash_of(sources) != built_from:",
        "if not sources and hash_of(sources) != built_from:",
        "tests/model/kernels/cpu/test_library.py",
    ),
    Mutant(
        "a worker without the kernels claims them",
        "operators/segment/numerics.py",
        '"torch" if kernels_named(kernels) is None else kernels',
        "kernels",
        "tests/operators/segment/test_numerics.py",
    ),
    Mutant(
        "the kernels compute where torch was recorded",
        "operators/segment/segment.py",
        "kernels=kernels_named(numerics.kernels)",
        "kernels=usable_kernels()",
        "tests/operators/segment/test_numerics.py",
    ),
    Mutant(
        "the area of a drawn mask is not compared",
        "model/kernels/cpu/border.py",
        "if np.count_nonzero(pixels) != mask.area:",
        "if np.count_nonzero(pixels) > mask.area:",
        "tests/model/kernels/cpu/test_border.py",
    ),
    Mutant(
        "a mask keeps too few of its logits",
        "model/kernels/cpu/border.py",
        "return int(self.places[first]), int(self.places[last]) + _TAPS",
        "return int(self.places[first]), int(self.places[last]) + _TAPS - 1",
        "tests/model/kernels/cpu/test_border.py",
    ),
    Mutant(
        "kernels draw an embedding of any size",
        "model/kernels/cpu/drawing.py",
        "and side * side == len(drawn) and side % BLOCK == 0",
        "and side * side == len(drawn)",
        "tests/model/kernels/cpu/test_drawing.py",
    ),
    Mutant(
        "maps are not stored block by block",
        "model/kernels/cpu/drawing.py",
        "return blocks.transpose(1, 2).contiguous()",
        "return blocks.contiguous().view(len(blocks), -1, BLOCK)",
        "tests/model/kernels/cpu/test_drawing.py",
    ),
    Mutant(
        "kernels decode without the vectors of earlier blocks",
        "model/sam/point_decoder.py",
        "keyed = keys, shared.scores.prior(keys, images.vectors)",
        "keyed = keys, shared.scores.prior(keys, images.vectors) * 0",
        "tests/model/sam/test_point_decoder.py",
    ),
    Mutant(
        "products below the diagonal count once",
        "model/kernels/cpu/decoding.py",
        "gram.tril().add_(gram.tril(-1))",
        "gram.tril()",
        "tests/model/kernels/cpu/test_decoding.py",
    ),
    Mutant(
        "a step writes to the rows of another one",
        "model/kernels/cpu/decoding.py",
        "(all_steps - steps) * heads * tokens",
        "0 * heads * tokens",
        "tests/model/sam/test_point_decoder.py",
    ),
    Mutant(
        "a click's mask is added with the wrong bias",
        "model/sam/prompt_encoder.py",
        "bias[None] - self.no_mask_embed.weight",
        "bias[None]",
        "tests/model/sam/test_prompt_encoder.py",
    ),
    Mutant(
        "the tokens first attend to a click's image without its mask",
        "model/sam/point_decoder.py",
        "few @ plan.keys.transpose(2, 3) + few @ keys.transpose(2, 3) @ coefficients[:, None]",
        "few @ plan.keys.transpose(2, 3)",
        "tests/model/sam/test_prompt_decoder.py",
    ),
    Mutant(
        "all images are decoded by the plan of the first one",
        "model/sam/predictor.py",
        "self._planned is None or self._planned[0] is not embedding",
        "self._planned is None",
        "tests/model/sam/test_prompt_decoder.py",
    ),
    Mutant(
        "a cluster's nodes aren't asked for the CPU kernels",
        "pipeline/building/dataset/first_numerics.py",
        "if why is not None and node in",
        "if why == 0 and node in",
        "tests/pipeline/building/dataset/test_first_numerics.py",
    ),
    Mutant(
        "kernels draw all points on the first one's image",
        "model/sam/point_decoder.py",
        "upscaler.draw(images.scale[prompt], images.coefficients[prompt],",
        "upscaler.draw(images.scale[0], images.coefficients[0],",
        "tests/model/sam/test_point_decoder.py",
    ),
    Mutant(
        "kernels draw without the first step's bias",
        "model/sam/point_decoder.py",
        "upscaled[..., -1, :] += bias",
        "upscaled[..., -1, :] += 0 * bias",
        "tests/model/sam/test_point_decoder.py",
    ),
    Mutant(
        "a rest that fits takes a full chunk",
        "model/automatic/on_device/crops.py",
        "small if rest <= small else",
        "small if rest < small else",
        "tests/model/automatic/on_device/test_crops.py::test_chunks_have_two_sizes",
    ),
    Mutant(
        "numerics that lack a field added later have no value of it",
        "operators/segment/numerics.py",
        'ADDED[name] if name in needed else ""',
        '"" if name in needed else ""',
        "tests/operators/segment/test_numerics.py",
    ),
)
