"""Faults in the masks of photographs, in what a configuration says, and in the boxes of HEIC and AVIF."""

from tests.support.mutant import Mutant

RUN = "tests/pipeline/masks/test_run.py"
OUTPUTS = "tests/pipeline/masks/test_outputs.py"
BOXES = "tests/operators/test_redactions_boxes.py"

MASKS_MUTANTS = (
    Mutant(
        "a cutout keeps what is around the object",
        "operators/overlay.py",
        "image[box] & alpha",
        "image[box]",
        "tests/pipeline/masks/test_results.py",
    ),
    Mutant(
        "a photograph keeps a file that is another's",
        "pipeline/masks/outputs.py",
        "if is_free and photograph_of(file) == name:",
        "if is_free:",
        OUTPUTS,
    ),
    Mutant(
        "a photograph keeps a file that another is to be written to",
        "pipeline/masks/outputs.py",
        "is_free = file in there and file not in taken",
        "is_free = file in there",
        OUTPUTS,
    ),
    Mutant(
        "a photograph does not keep its file when another is deleted",
        "pipeline/masks/outputs.py",
        "if is_free and task.target in there and photograph_of(task.target) == name:",
        "if is_free and task.target in there:",
        OUTPUTS,
    ),
    Mutant(
        "an overlay of other masks is kept",
        "pipeline/masks/run.py",
        "is_current = former is not None and is_drawn_from(there, former.sha256)",
        "is_current = former is not None",
        f"{RUN}::test_an_overlay_always_shows_the_masks_that_are_there",
    ),
    Mutant(
        "folders that cannot be read are not told",
        "pipeline/commands/masks.py",
        "for line in planned.photographs.unreadable:",
        "for line in ():",
        f"{RUN}::test_what_is_wrong_is_known_before_torch_is_loaded",
    ),
    Mutant(
        "a long name is counted in characters",
        "pipeline/masks/outputs.py",
        "len(os.fsencode(base_name(longest)))",
        "len(base_name(longest))",
        OUTPUTS,
    ),
    Mutant(
        "masks of a photograph that has changed are taken for its own",
        "pipeline/masks/run.py",
        "if origin is None or origin.photograph != photograph:",
        "if origin is None:",
        f"{RUN}::test_another_photograph_of_that_name_is_not_taken_for_the_first",
    ),
    Mutant(
        "masks of other settings are kept by an overwrite that stopped",
        "pipeline/masks/run.py",
        "    if is_same:\n        return written",
        "    if not plan.outputs.next_to:\n        return written",
        f"{RUN}::test_an_overwrite_that_stopped_is_finished_by_the_next_run",
    ),
    Mutant(
        "a file next to a photograph is overwritten that segmint did not write",
        "pipeline/masks/run.py",
        "    _check_ours(plan, task, written)\n    if written",
        "    if written",
        f"{RUN}::test_a_file_that_segmint_did_not_write_is_never_overwritten",
    ),
    Mutant(
        "the work is announced after torch is loaded",
        "pipeline/masks/run.py",
        "    announce(work)",
        "    import torch\n\n    announce(work)",
        "tests/pipeline/commands/test_cli.py::test_masks_says_what_it_does_before_torch_is_imported",
    ),
    Mutant(
        "a box is taken for its corners",
        "pipeline/masks/predict.py",
        "[[x, y, x + width, y + height]]",
        "[[x, y, width, height]]",
        "tests/pipeline/masks/test_predict.py",
    ),
    Mutant(
        "links that lead nowhere are not told",
        "pipeline/masks/images.py",
        "if not path.is_file():",
        "if path.is_fifo():",
        "tests/pipeline/masks/test_images.py",
    ),
    Mutant(
        "the interpreter is finalized while Arrow's threads run",
        "pipeline/commands/cli.py",
        "os._exit(end.code if isinstance(end.code, int) else bool(end.code))",
        "pass",
        "tests/pipeline/commands/test_cli.py::test_the_process_ends_without_finalizing_the_interpreter_in_which_arrow_s_threads_may_still_run",
    ),
    Mutant(
        "each of many unknown keys is compared with all known ones",
        "pipeline/config/yaml_file.py",
        "if len(found) < SHOWN else",
        "if found is not None else",
        "tests/pipeline/config/test_yaml_file.py",
    ),
    Mutant(
        "YAML's numbers in sixties are taken",
        "pipeline/config/yaml_file.py",
        'if ":" in node.value:',
        'if "::" in node.value:',
        "tests/pipeline/config/test_yaml_file.py",
    ),
    Mutant(
        "a box of 64 bits has a header of 8 bytes",
        "operators/redactions.py",
        "header, (size,) = 16, ",
        "header, (size,) = 8, ",
        BOXES,
    ),
    Mutant(
        "items beside the idat box are looked for in it",
        "operators/redactions.py",
        "shift = stored if is_inside else 0",
        "shift = stored",
        BOXES,
    ),
    Mutant(
        "the limit on XMP packets is for each",
        "operators/redactions.py",
        "most -= sum(length for _, length in extents) if number in wanted else 0",
        "most -= 0",
        BOXES,
    ),
)
