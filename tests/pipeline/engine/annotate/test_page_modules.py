"""Modules of the annotator's page in a real Chromium: run lengths, strokes, undo, times, drafts and keys."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest

from segmint.model.automatic.rle import Rle, decode, encode
from tests.support.page_modules import disc_line, module_page, run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

SIZES = [(1, 1), (7, 5), (40, 23), (65, 130)]
SHADES = ("early", 100), ("late", 200)


@pytest.fixture(scope="module")
def page(chromium: "Browser") -> Iterator["Page"]:
    page = module_page(chromium)
    yield page
    page.close()


def masks_of(size: tuple[int, int], seed: int) -> list[np.ndarray]:
    """An empty mask, a full one, noise, and two blobs."""
    random = np.random.default_rng(seed)
    rows, columns = np.indices(size)
    blobs = [np.hypot(rows - y, columns - x) < r for y, x, r in random.uniform(0, max(size), (2, 3))]
    return [np.zeros(size, bool), np.ones(size, bool), random.random(size) < 0.5, *blobs]


def test_run_lengths_are_those_of_the_dataset_and_sets_of_pixels_are_exact(page: "Page") -> None:
    cases = []
    expected = []
    for seed, size in enumerate(SIZES):
        masks = masks_of(size, seed)
        for one in masks:
            for other in masks:
                cases.append([encode(one).counts, encode(other).counts, *size])
                made = [encode(mask).counts for mask in (one, one | other, one & ~other)]
                iou = (one & other).sum() / max(1, (one | other).sum())
                expected.append([*made, int(one.sum()), pytest.approx(iou)])
    found = run(
        page,
        "spans",
        """return given.map(([one, other, height, width]) => {
            const [a, b] = [one, other].map((counts) => spans.spansOf(counts, height, width));
            const written = [a, spans.union(a, b), spans.difference(a, b)];
            return [...written.map((each) => spans.countsOf(each, height, width)), spans.areaOf(a), spans.iouOf(a, b)];
        })""",
        cases,
    )
    assert found == expected
    # Runs of zero pixels, which others may write, and parts that touch are one run.
    assert run(page, "spans", 'return spans.countsOf(spans.spansOf("0201", 5, 1), 5, 1)') == "05"
    assert run(page, "spans", "return spans.countsOf(spans.spansFrom([[2, 5], [0, 2], [1, 3]]), 3, 2)") == "051"


def test_masks_are_painted_to_the_pixel_and_coarsely_wherever_they_have_one(page: "Page") -> None:
    cases, expected = [], []
    for seed, size in enumerate(SIZES[1:]):
        for mask in masks_of(size, seed):
            for step, thickness in [(1, 1), (1, 3), (2, 1), (2, 2), (3, 1), (5, 2)]:
                cases.append([encode(mask).counts, *size, step, thickness])
                there, inner = np.pad(mask, thickness), mask.copy()
                for axis, by in [(0, thickness), (0, -thickness), (1, thickness), (1, -thickness)]:
                    inner &= np.roll(there, by, axis)[thickness:-thickness, thickness:-thickness]
                # Outside 0, filled 1, lines 2.
                colors = np.pad(mask.astype(int) + (mask & ~inner), [(0, -side % step) for side in size])
                blocks = colors.reshape(colors.shape[0] // step, step, colors.shape[1] // step, step)
                painted = blocks.max(axis=(1, 3)).ravel()
                expected.append([painted.tolist(), (painted * (painted == 2)).tolist()])
    found = run(
        page,
        "mask",
        """return given.map(([counts, height, width, step, thickness]) => {
            const [across, down] = [width, height].map((side) => Math.ceil(side / step));
            const drawn = new mask.Mask({ segmentation: { size: [height, width], counts } });
            return [1, null].map((fill) => {
                const pixels = new Uint32Array(across * down);
                drawn.paint(pixels, { left: 0, top: 0, width: across }, fill, 2, thickness, step);
                return [...pixels];
            });
        })""",
        cases,
    )
    assert found == expected


def test_a_count_of_another_size_is_an_error(page: "Page") -> None:
    counts = encode(np.ones((4, 4), bool)).counts
    found = run(page, "spans", "try { spans.spansOf(given, 4, 5); return null } catch (e) { return e.message }", counts)
    assert "16 pixels" in found


def test_strokes_have_the_pixels_within_their_radius(page: "Page") -> None:
    random = np.random.default_rng(11)
    size = 61, 83
    strokes: list[tuple[np.ndarray, float]] = []
    for number in range(60):
        points = random.uniform([-10, -10], [93, 71], (1 + number % 7, 2))
        strokes.append((points, float(random.choice([0.5, 0.7, 1, 3.3, 12, 40]))))
    # Along the axes, on centers and borders of pixels, back and forth, and beside the image.
    strokes += [(np.array(points, float), radius) for points in (
        [[10, 10], [30, 10]], [[10.5, 5], [10.5, 50]], [[4, 4], [20, 20], [4, 4]], [[7.5, 7.5], [7.5, 7.5]],
        [[-40, 30], [-20, 30]], [[82.9, 60.9]], [[0, 0], [83, 61]],
    ) for radius in (0.5, 1, 2.5)]  # fmt: skip
    given = [[points.tolist(), radius] for points, radius in strokes]
    found = run(
        page,
        "strokes",
        f"return given.map(([points, radius]) => strokes.brushed(null, points, radius, true, {list(size)}))",
        given,
    )
    for counts, (points, radius) in zip(found, strokes, strict=True):
        assert np.array_equal(decode(Rle(size, counts)), disc_line(points, radius, size)), (points, radius)
    mask = masks_of(size, 3)[3]
    erased = run(
        page,
        "strokes",
        f"return given.strokes.map(([points, r]) => strokes.brushed(given.mask, points, r, false, {list(size)}))",
        {"mask": encode(mask).counts, "strokes": given},
    )
    for counts, (points, radius) in zip(erased, strokes, strict=True):
        assert counts == encode(mask & ~disc_line(points, radius, size)).counts


def test_undo_goes_back_to_the_first_state_and_redo_to_the_last(page: "Page") -> None:
    found = run(
        page,
        "history",
        """const past = new history.History(0);
        for (let state = 1; state <= 1000; state++) past.push(state);
        past.push(1000);
        const seen = [past.state];
        while (past.undo()) seen.push(past.state);
        for (let times = 0; times < 400; times++) past.redo();
        seen.push(past.state);
        const draft = structuredClone(past.dump());
        past.push("other");
        const { canRedo } = past;
        past.load(draft);
        const back = [past.state, past.redo() && past.state];
        return { seen, canRedo, back, kept: draft.states.length };""",
    )
    assert found == {"seen": [*range(1000, -1, -1), 400], "canRedo": False, "back": [400, 401], "kept": 200}


def test_the_draft_of_a_short_history_is_whole(page: "Page") -> None:
    for undone in (0, 3, 5):
        body = """const past = new history.History(0);
            for (let state = 1; state <= 5; state++) past.push(state);
            for (let times = 0; times < given; times++) past.undo();
            return past.dump()"""
        assert run(page, "history", body, undone) == {"states": [0, 1, 2, 3, 4, 5], "at": 5 - undone}


def test_seconds_count_only_while_there_is_input(page: "Page") -> None:
    found = run(
        page,
        "timing",
        """let now = 100;
        const watch = new timing.Stopwatch(30, () => now);
        const at = (seconds) => { now = 100 + seconds; };
        watch.reset();
        at(10); watch.input(); watch.workOn("a");
        at(20); watch.input();
        at(100); const idle = watch.idle; const sofar = [watch.image, watch.mask("a")];
        watch.input();
        at(104); watch.workOn("b"); at(106); watch.input();
        at(110); watch.workOn(null); watch.input(); at(111);
        const dump = watch.dump();
        const after = [watch.idle, watch.image, watch.mask("a"), watch.mask("b")];
        watch.pause();
        at(120); watch.input(); at(122);
        return { idle, sofar, dump, after, paused: watch.image };""",
    )
    # 20 seconds and 30 more, then nothing until 100.
    assert found["idle"] is True
    assert found["sofar"] == [50, 40]
    assert found["dump"] == {"image": 61, "masks": {"a": 44, "b": 6}}
    assert found["after"] == [False, 61, 44, 6]
    assert found["paused"] == 63


def test_drafts_are_kept_in_order_and_removed(page: "Page") -> None:
    body = """const kept = new drafts.Drafts();
        const key = drafts.draftKey({ name: "street", key: "k" }, 7, "ann");
        const draft = { history: { states: [{ items: [] }], at: 0 } };
        await kept.stored(key); // the database is open
        for (let time = 0; time < 20; time++) kept.write(key, { ...draft, time });
        const asked = await kept.stored(key); // nothing waits here for the writes before
        await kept.write(drafts.draftKey({ name: "street", key: "k" }, 7, "bob"), "other");
        await kept.write(drafts.draftKey({ name: "street", key: "m" }, 7, "ann"), "another dataset's");
        const again = await new drafts.Drafts().read(key);
        await kept.remove(key);
        return [asked, again, (await kept.read(key)) ?? null]"""
    draft = {"history": {"states": [{"items": []}], "at": 0}, "time": 19}
    assert run(page, "drafts", body) == [draft, draft, None]


def test_each_key_has_one_meaning_and_each_action_is_known(page: "Page") -> None:
    rows = run(page, "keys", "return keys.KEYS.flatMap(([, rows]) => rows)")
    named = [key for keys, _, _ in rows for key in keys]
    assert len(named) == len(set(named))
    assert all(text for _, text, _ in rows)

    def action(key: str, tag: str = "div", **held: bool) -> Any:
        event = {"key": key, "ctrlKey": False, "shiftKey": False, "altKey": False, "metaKey": False, **held}
        body = """const target = document.createElement(given.tag);
            const getModifierState = () => given.event.altGraph === true;
            return keys.actionOf({ ...given.event, target, getModifierState })"""
        return run(page, "keys", body, {"event": event, "tag": tag})

    assert action("z", ctrlKey=True) == action("Z", metaKey=True) == "undo"
    assert action("Z", ctrlKey=True, shiftKey=True) == "redo"
    assert action("C") == "tool:points"  # with caps lock
    assert action("?", shiftKey=True) == "help"
    assert action("ArrowUp", shiftKey=True) == "cross:10"
    assert action("z", altKey=True) is None
    assert action("q") == action("[") == action("[", altKey=True, ctrlKey=True, altGraph=True) == "smaller"
    assert action("Enter") == "accept"
    assert action("Enter", tag="button") is None
    assert action("b", tag="button") == "tool:brush"
    assert action("b", tag="textarea") is None


def test_an_answer_says_what_was_made_replaced_and_deleted(page: "Page") -> None:
    rows = [
        {"annotation_id": 70000 + index, "segmentation": {"size": [4, 4], "counts": counts}, "area": area}
        for index, (counts, area) in enumerate([("0d0", 16), ("4d0", 4), ("8d0", 2)])
    ]
    body = """const image = { base: "b", masks: given, submission: null };
        let state = work.begin(submission.itemsOf(image));
        const [largest, middle] = state.items;
        state = work.setPixels(state, "new", middle);
        const key = state.active.key;
        state = work.accept(state, "new");
        state = work.remove(state, largest.key);
        state = work.addPoint(state, 1, 2, 1);
        state = work.accept(state, "other");
        const times = { image: 12.34, masks: { [key]: 5.06 } };
        const body = submission.submissionOf(image, state.items, times, { complete: true });
        const again = submission.itemsOf({ masks: given, submission: { n: 1, ...body } });
        const { masks } = submission.timesOf({ n: 1, ...body });
        const same = submission.submissionOf(image, again, { image: 12.34, masks }, { complete: true });
        return { body, same };"""
    found = run(page, "submission work", body, rows)
    point = {"kind": "point", "x": 1, "y": 2, "label": 1}
    assert found["body"] == {
        "base": "b",
        "complete": True,
        "comment": None,
        "flag": False,
        "seconds": 12.3,
        "masks": [
            {"counts": "new", "source": "corrected", "seconds": 5.1, "label": None, "prompts": [], "parent": 70001},
            {"counts": "other", "source": "assisted", "seconds": 0, "label": None, "prompts": [point], "parent": None},
        ],
        "replaced": [{"id": 70001, "counts": "4d0"}],
        "deleted": [{"id": 70000, "counts": "0d0"}],
    }
    assert found["same"] == found["body"]


def test_labels_are_saved_with_their_masks_and_only_if_somebody_set_them(page: "Page") -> None:
    eye = np.eye(4, dtype=bool)
    pixels, half, apart = (encode(mask).counts for mask in (eye, eye & (np.arange(4) < 2), ~eye))
    rows = [
        {
            "annotation_id": index,
            "segmentation": {"size": [4, 4], "counts": counts},
            "area": 9 - index,
            "label": label,
            "label_source": source,
        }
        for index, (counts, label, source) in enumerate(
            [
                ("one", None, None),
                ("two", "tile", "model:ab"),
                (pixels, "tile", "person"),
                ("four", None, None),
                ("five", "bowl", "model:ab"),
                ("six", "bowl", "person"),
            ],
            1,
        )
    ]
    script = """const { rows, half, apart } = given;
        const image = { base: "b", masks: rows, submission: null };
        const first = work.begin(submission.itemsOf(image));
        let state = work.setLabel(first, "d1", "cup");
        const labeled = state;
        state = work.setLabel(state, "d2", "");
        const [, , third] = state.items;
        const inherited = [half, apart].map((counts) => {
            const given = (id) => submission.inheritedLabel(rows[id - 1], counts);
            const { label } = work.accept(work.setPixels(first, counts, third), counts, given).items[2];
            const mask = { counts, source: "corrected", parent: 3 };
            const saved = { n: 1, masks: [mask], replaced: [{ id: 3 }], deleted: [] };
            return [label, submission.itemsOf({ masks: rows, submission: saved }).at(-1).label];
        });
        state = work.accept(work.setPixels(state, half, third), half);
        state = work.accept(work.setPixels(state, "new"), "new");
        state = work.setLabel(state, state.items.at(-1).key, "saucer");
        const unchanged = work.setLabel(state, "d4", "") === state && work.setLabel(state, "nobody", "cup") === state
            && work.setLabel(state, "d6", "bowl") === state; // a person's already
        state = work.setLabel(state, "d5", "bowl");
        const body = submission.submissionOf(image, state.items, { image: 0, masks: {} }, { complete: true });
        const again = submission.itemsOf({ masks: rows, submission: { n: 1, ...body } });
        const same = submission.submissionOf(image, again, { image: 0, masks: {} }, { complete: true });
        const { items, unfit } = submission.carried(first.items, body, "c1", image);
        const shown = [again, items].map((each) => each.map(({ counts, label }) => [counts, label]).sort());
        const differ = !work.sameItems(first, labeled) && !work.sameMasks(first, labeled);
        return { body, same, shown, unfit, unchanged, differ, inherited };"""
    found = run(page, "submission work", script, {"rows": rows, "half": half, "apart": apart})
    assert found["inherited"] == [["tile", "tile"], [None, None]]
    told = [(mask["counts"], mask["source"], mask["parent"], mask["label"]) for mask in found["body"]["masks"]]
    assert told == [
        ("one", "corrected", 1, "cup"),
        ("two", "corrected", 2, ""),
        (half, "corrected", 3, None),
        ("five", "corrected", 5, "bowl"),
        ("new", "manual", None, "saucer"),
    ]
    assert [mask["id"] for mask in found["body"]["replaced"]] == [1, 2, 3, 5]
    assert found["body"]["deleted"] == []
    assert found["same"] == found["body"]
    shown = [["five", "bowl"], ["four", None], [half, "tile"], ["new", "saucer"], ["one", "cup"], ["six", "bowl"]]
    assert [sorted(each) for each in found["shown"]] == [sorted([*shown, ["two", None]])] * 2
    assert (found["unfit"], found["unchanged"], found["differ"]) == (0, True, True)


def test_a_mask_that_replaces_one_is_its_correction_and_is_there_once(page: "Page") -> None:
    rows = [
        {"annotation_id": index, "segmentation": {"size": [4, 4], "counts": counts}, "area": 9 - index, "label": "tile"}
        for index, counts in enumerate(["one", "two"], 1)
    ]
    script = """const image = { base: "b", masks: given, submission: null };
        let state = work.begin(submission.itemsOf(image));
        const [first, second] = state.items;
        const add = (counts, item = null) => {
            state = work.accept(work.setPixels(state, counts, item), counts);
            return (item ? state.items.find((each) => each.counts === counts) : state.items.at(-1)).key;
        };
        const replace = (key, twin) => (state = work.replace(state, key, twin));
        replace(add("new"), first.key); // one of the dataset
        replace(add("newer"), state.items[0].key); // its correction
        const own = add("own");
        state = work.setLabel(state, own, "cup");
        replace(add("newest"), own);
        const both = submission.submissionOf(image, state.items, { image: 0, masks: {} }, { complete: true });
        replace(add("of two", second), state.items[0].key); // a correction of another one of the dataset
        const body = submission.submissionOf(image, state.items, { image: 0, masks: {} }, { complete: true });
        const same = work.replace(state, "gone", own) === state;
        return [both, body].map((each) => [
            each.masks.map((mask) => [mask.counts, mask.source, mask.parent, mask.label]),
            each.replaced.map(({ id }) => id), each.deleted.map(({ id }) => id), same,
        ]);"""
    both, body = run(page, "submission work", script, rows)
    newest = ["newest", "manual", None, "cup"]
    assert both == [[["newer", "corrected", 1, None], newest], [1], [], True]
    assert body == [[["of two", "corrected", 2, None], newest], [2], [1], True]


def test_what_fits_is_carried_to_an_image_whose_masks_have_changed(page: "Page") -> None:
    def row(number: int, counts: str) -> dict[str, Any]:
        return {"annotation_id": number, "segmentation": {"size": [4, 4], "counts": counts}, "area": 16 - number}

    def mask(counts: str, parent: int | None) -> dict[str, Any]:
        source = "assisted" if parent is None else "corrected"
        return {"counts": counts, "source": source, "seconds": 1, "label": None, "prompts": [], "parent": parent}

    body = {
        "masks": [mask("of 1", 1), mask("of 2", 2), mask("new", None)],
        "replaced": [{"id": 1, "counts": "one"}, {"id": 2, "counts": "two"}],
        "deleted": [{"id": 3, "counts": "three"}, {"id": 4, "counts": "four"}],
    }
    rows = [row(1, "one"), row(2, "two, redacted"), row(3, "three"), row(5, "five")]  # 4 is gone
    script = """const items = submission.itemsOf({ masks: given.rows, submission: null });
        const image = { base: "b", masks: given.rows };
        const made = submission.carried(items, given.body, "c1", image);
        const saved = submission.submissionOf(image, made.items, { image: 0, masks: made.masks }, { complete: true });
        return [made.items.map(({ counts }) => counts), saved, made.unfit];"""
    counts, saved, unfit = run(page, "submission", script, {"rows": rows, "body": body})
    assert counts == ["two, redacted", "five", "of 1", "new"]
    assert saved["replaced"] == [{"id": 1, "counts": "one"}]
    assert saved["deleted"] == [{"id": 3, "counts": "three"}]
    assert [each["seconds"] for each in saved["masks"]] == [1, 1]
    assert unfit == 1

    # All of it was merged meanwhile, and is there once.
    merged = [row(5, "five"), row(6, "of 1"), row(7, "of 2"), row(8, "new")]
    counts, saved, unfit = run(page, "submission", script, {"rows": merged, "body": body})
    assert counts == ["five", "of 1", "of 2", "new"]
    assert (saved["masks"], saved["replaced"], saved["deleted"], unfit) == ([], [], [], 0)


def test_a_draft_becomes_what_fits_of_it_and_no_time_is_lost(page: "Page") -> None:
    """Of image 7 with masks 1 and 2; the draft corrects 1, deletes 2, and has a new mask, of 9 seconds."""
    script = """const size = [4, 4];
        const row = (id, counts) => ({ annotation_id: id, segmentation: { size, counts }, area: 16 - id });
        const image = {
            masks: [row(1, "0d0"), row(2, "4d0")], size, submission: null, state: "open",
            base: "b", assignment: 0, n: 0, stage: "assisted", began: 0, locks: false,
        };
        let state = work.begin(submission.itemsOf(image));
        const states = [state];
        const [one, two] = state.items;
        states.push((state = work.accept(work.setPixels(state, "1c2", one), "1c2")));
        states.push((state = work.remove(state, two.key)));
        states.push((state = work.setPixels(state, "88")));
        const times = { image: 30, masks: { [state.active.key]: 9 } };
        const unsaid = submission.noteOf(null);
        const kept = restoring.draftOf(image, { states, at: 3 }, [], times, "88", unsaid);
        const looked = restoring.draftOf(image, { states: [states[0]], at: 0 }, [], times, null, unsaid);
        const note = { complete: false, comment: "a hand", flag: true };
        const noted = restoring.draftOf(image, { states: [states[0]], at: 0 }, [], times, null, note);
        const noteIn = (now) => restoring.restored(noted, now, work.begin(submission.itemsOf(now)))?.note ?? null;
        const show = (changed, draft = kept) => {
            const now = { ...image, ...changed };
            const back = restoring.restored(structuredClone(draft), now, work.begin(submission.itemsOf(now)));
            if (back === null) return null;
            const { states, at } = back.history;
            const seconds = states[at].items.map(({ key }) => back.times.masks[key] ?? 0);
            const shown = states[at].items.map(({ counts }) => counts);
            return [shown, seconds, back.times.image, back.note.complete, states.length, back.text];
        };
        const saved = (counts, more) => ({
            masks: [{ counts, source: "manual", seconds: 4, label: null, prompts: [], parent: null }],
            replaced: [], deleted: [], complete: true, seconds: 50, stage: "assisted", n: 1, ...more,
        });
        const box = { kind: "box", x: 0, y: 0, w: 1, h: 1 };
        return {
            here: show({}),
            elsewhere: show({ n: 1, submission: saved("2e") }),
            sent: show({ n: 1, submission: { ...kept.body, n: 1 } }),
            changed: show({ base: "c", masks: [row(1, "0d0"), row(2, "redacted"), row(3, "5d0")] }),
            merged: show({ base: "c", state: "merged", masks: [row(3, "1c2"), row(4, "88")] }),
            stage: show({ stage: "semi", locks: true, prefill: [{ counts: "2e", box: [0, 0, 1, 1] }] }),
            looked: [show({}, looked), show({ base: "c" }, looked), show({ n: 1, submission: saved("2e") }, looked)],
            noted: [
                noteIn(image), noteIn({ ...image, base: "c" }), noteIn({ ...image, n: 1, submission: saved("2e") }),
                noteIn({ ...image, n: 1, submission: { ...noted.body, n: 1 } }), noted.body.comment,
            ],
            kept: kept.body.masks.map(({ counts, seconds }) => [counts, seconds]),
            untouched: submission.itemsOf({ ...image, submission: saved("2e", { stage: "semi", masks: [
                { counts: "2e", source: "assisted", seconds: 0, prompts: [box] },
                { counts: "3d", source: "assisted", seconds: 2, prompts: [box] },
            ] }) }).map(({ filled }) => filled === true),
        };"""
    found = run(page, "submission work restoring", script)
    assert found["kept"] == [["1c2", 0], ["88", 9]]  # also the mask that is worked on
    back = "Your draft of this image is restored."
    assert found["here"] == [["1c2"], [0], 30, False, 4, back]
    shown, seconds, image, complete, states, text = found["elsewhere"]
    assert (shown, seconds, image, complete, states) == (["0d0", "4d0", "2e"], [0, 0, 4], 80, True, 5)
    assert "saved elsewhere" in text
    assert found["sent"] is None
    note = {"complete": False, "comment": "a hand", "flag": True}
    assert found["noted"] == [note, note, {"complete": True, "comment": None, "flag": False}, None, "a hand"]
    assert found["looked"] == [[["0d0", "4d0"], [0, 0], 30, False, 1, ""], None, None]  # of masks as they were
    shown, seconds, image, complete, states, text = found["changed"]
    assert (shown, seconds) == (["redacted", "5d0", "1c2", "88"], [0, 0, 0, 9])
    assert (image, complete, states) == (30, False, 2)
    assert text.startswith("This image's masks have changed.")
    assert text.endswith("One of your masks no longer fits.")
    assert found["merged"][0] == ["1c2", "88"]
    assert "Your masks are already there" in found["merged"][5]
    shown, seconds, *_, text = found["stage"]
    assert (shown, seconds) == (["2e", "1c2", "88"], [0, 0, 9])
    assert text.startswith("Your draft is from another stage.")
    assert found["untouched"] == [False, False, True, False]


def test_masks_are_around_and_inside_each_other_by_their_containers(page: "Page") -> None:
    """Also if masks between them are hidden, and if damaged containers form a cycle."""
    containers = {1: (900, None), 2: (500, 1), 3: (500, 2), 4: (90, 3), 5: (80, 2), 6: (70, 7), 7: (60, 6), 8: (50, 8)}
    rows = [{"annotation_id": id, "area": area, "container": own} for id, (area, own) in containers.items()]
    walk = """return given.shown.map((shown) => {
            const nesting = new levels.Nesting(() => shown, (id) => id, () => {});
            nesting.open(given.rows);
            return shown.map((id) => [nesting.around(id), nesting.inside(id)]);
        })"""
    everything = [1, 2, 3, 4, 5, 6, 7, 8]
    whole, without_2 = run(page, "levels", walk, {"rows": rows, "shown": [everything, [1, 3, 4, 5]]})
    assert whole == [
        [None, [2]], [1, [3, 5]], [2, [4]], [3, []], [2, []], [None, [7]], [6, []], [None, []],
    ]  # fmt: skip
    assert without_2 == [[None, [3, 5]], [1, [4]], [3, []], [1, []]]


def test_outputs_have_names_only_where_their_order_was_measured(page: "Page") -> None:
    call = "return given.map(([output, order]) => [levels.levelOf(output, order), levels.orderOf(order)])"
    order = {"points": 200, "rising": 197}
    unknown, plain, named = run(page, "levels", call, [[None, order], [1, None], [1, order]])
    assert unknown[0] is None
    assert plain == ["output 1", ""]
    assert named[0] == "part (output 1)"
    assert "98.5% of 200 points" in named[1]


def test_a_cutout_waits_until_its_image_is_loaded(page: "Page") -> None:
    """Until then, the browser shows the image before, and would cut from it."""
    pictures = {name: cv2.imencode(".png", np.full((5, 7, 3), value, np.uint8))[1].tobytes() for name, value in SHADES}
    late: list[Route] = []
    page.route("**/images/early.png", lambda route: route.fulfill(body=pictures["early"], content_type="image/png"))
    page.route("**/images/late.png", lambda route: late.append(route))
    mask = np.zeros((5, 7), bool)
    mask[1:4, 2:6] = True
    cut = """
        const picture = document.body.appendChild(Object.assign(document.createElement("img"), { id: "picture" }));
        picture.src = "/images/early.png";
        await picture.decode();
        picture.src = "/images/late.png";
        window.cut = [];
        URL.createObjectURL = (blob) => { window.cut.push(blob); return "about:blank#"; };
        HTMLAnchorElement.prototype.click = () => {};
        const image = { id: 3, size: [5, 7] };
        canvas.MaskCanvas.prototype.saveCutout.call({ stage: { width: 7, height: 5 } }, given, image);
        await new Promise((done) => setTimeout(done, 200));
        return window.cut.length;
    """
    assert run(page, "canvas", cut, encode(mask).counts) == 0
    late[0].fulfill(body=pictures["late"], content_type="image/png")
    page.wait_for_function("window.cut.length")
    read = """
        const map = await createImageBitmap(window.cut[0]);
        const context = new OffscreenCanvas(map.width, map.height).getContext("2d");
        context.drawImage(map, 0, 0);
        return [map.width, map.height, ...context.getImageData(0, 0, 1, 1).data];
    """
    assert run(page, "canvas", read) == [4, 3, 200, 200, 200, 255]
