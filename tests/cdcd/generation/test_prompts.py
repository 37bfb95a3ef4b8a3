"""Files of prompts: every bad line is named; folders: a second run continues the first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cdcd.generation import PictureGenerator
from cdcd.generation import lists as module
from cdcd.generation import pictures as pictures_module
from cdcd.generation.lists import ListError
from cdcd.generation.prompts import (
    Filled,
    PictureFolder,
    Wish,
    fill_folder,
    plan,
    read_prompts,
)
from tests.cdcd.generation import tiny_models


def _file(folder: Path, content: str | bytes, name: str = "prompts.txt") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_prompt_on_each_line_and_blank_lines_counted(tmp_path: Path) -> None:
    content = "\ufeffa red bird\r\n\n   \n  птица\nlast, without a line break"
    found = read_prompts(_file(tmp_path, content))
    assert found.kind is None
    assert found.num_blank == 2
    assert found.wishes == [
        Wish("a red bird", line=1),
        Wish("  птица", line=4),
        Wish("last, without a line break", line=5),
    ]


def test_a_csv_with_some_columns_and_empty_cells(tmp_path: Path) -> None:
    content = (
        "Name, text ,seed,num\n"
        'one,"a ""red"" bird, small",3,2\n'
        ",,,\n"
        ",a blue bird,,\n"
        "three.png,a green bird, 0 ,1\n"
    )
    found = read_prompts(_file(tmp_path, content, "p.CSV"))
    assert found.kind == "text"
    assert found.num_blank == 1
    assert found.wishes == [
        Wish('a "red" bird, small', 2, 3, "one", 2),
        Wish("a blue bird", None, None, None, 4),
        Wish("a green bird", 1, 0, "three", 5),
    ]
    assert read_prompts(_file(tmp_path, "class\n3\ncrane", "c.csv")).kind == "class"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.txt", "", "must hold at least one prompt: got none; write one a line"),
        ("p.txt", "\n \n", "must hold at least one prompt"),
        ("p.txt", b"a bird\n\xff\xfe\n", "must be UTF-8: line 2 is not"),
        ("p.csv", "", "line 1: columns must be text or class"),
        ("p.csv", "text\n", "must hold at least one prompt"),
        ("p.csv", "prompt\na bird\n", "line 1: columns must be text or class.*got 'prompt'"),
        ("p.csv", "text,class\na,1\n", "line 1: columns must be text or class"),
        ("p.csv", "text,text\na,b\n", "line 1: columns must be text or class"),
        ("p.csv", "text,num\na bird\n", "line 2: must have 2 cells, as the header: got 1"),
        ("p.csv", "text,num\na, small bird,1\n", "line 2: must have 2 cells, as the header: got 3"),
        ("p.csv", "text,num\na,0\n", r"line 2: num must lie in 1 \.\. 10000: got '0'"),
        ("p.csv", "text,num\na,10001\n", "line 2: num must lie in"),
        ("p.csv", "text,num\na,2.5\n", "line 2: num must lie in"),
        ("p.csv", "text,seed\na,-1\n", "line 2: seed must lie in 0"),
        ("p.csv", "text,seed\na,99999999999999999999\n", "line 2: seed must lie in 0"),
        ("p.csv", "text,name\na,../b\n", r"line 2: name must be letters.*got '\.\./b'"),
        ("p.csv", "text,name\na,.hidden\n", "line 2: name must be letters"),
        ("p.csv", "text,num\n,3\n", "line 2: text must not be empty"),
        ("p.csv", 'text\n"a bird\n', "must be CSV"),
        (
            "p.csv",
            "text,num\na,0\nb,1\nc,0\nd,x\n",
            r"line 2: num must lie .* \(and 2 more bad lines: 4, 5\)",
        ),
        (
            "p.csv",
            "text,num\n" + "a,0\n" * 9,
            r"\(and 8 more bad lines: 3, 4, 5, 6, 7, …\)",
        ),
    ],
)
def test_a_bad_file_is_one_line(
    tmp_path: Path, name: str, content: str | bytes, words: str
) -> None:
    with pytest.raises(ListError, match=words) as caught:
        read_prompts(_file(tmp_path, content, name))
    assert "\n" not in str(caught.value)


def test_no_file_and_a_huge_one_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ListError, match="must be a file of prompts: there is none"):
        read_prompts(tmp_path / "no.txt")
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 3)
    with pytest.raises(ListError, match="must have at most 3 bytes: got 6; split it"):
        read_prompts(_file(tmp_path, "a bird"))


def one_line(error: ValueError) -> None:
    told = str(error)
    assert len(told.splitlines()) == 1, told
    assert told.isprintable(), told
    assert " must " in told
    assert "; " in told, told


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prompts")


WORDS = st.text(max_size=30) | st.sampled_from(
    [
        "a red bird",
        "\u202e",
        "\u200d",
        "\ufeff",
        "<|endoftext|>",
        "\x1b[31m",
        "9" * 25,
        "ﷺ",
        "🐦",
        "é",
    ]
)
HEADERS = st.sampled_from(
    ["text", "class", "text,num", "class,seed,name", "name,text,num,seed", ""]
)


@settings(max_examples=200, deadline=None)
@given(
    content=st.binary(max_size=120)
    | st.lists(WORDS, max_size=5).map(lambda lines: "\n".join(lines).encode("utf-8", "replace"))
    | st.tuples(HEADERS, st.lists(st.lists(WORDS, max_size=4).map(",".join), max_size=4)).map(
        lambda table: "\r\n".join([table[0], *table[1]]).encode("utf-8", "replace")
    ),
    name=st.sampled_from(["f.txt", "f.csv"]),
)
def test_any_file_gives_token_ids_or_one_line(
    of_text: PictureGenerator, of_class: PictureGenerator, scratch: Path, content: bytes, name: str
) -> None:
    path = _file(scratch, content, name)
    try:
        found = read_prompts(path)
        assert found.wishes
        generator = of_class if found.kind == "class" else of_text
        planned = plan(generator, found.wishes, 1, 0, path)
    except ListError as error:
        one_line(error)
        return
    for one in planned[:3]:
        inputs = generator.encode([one.condition])  # type: ignore[list-item]
        if inputs.length is not None:
            assert 3 <= int(inputs.length) <= 77
        assert all(file.isascii() and "/" not in file for file in one.files)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=[]), max_size=60) | WORDS)
def test_any_text_is_a_prompt_or_one_line(
    of_text: PictureGenerator, of_class: PictureGenerator, text: str
) -> None:
    for check in (of_text.check_text, of_class.find_class):
        try:
            check(text)
        except ValueError as error:
            one_line(error)


# Plans


def test_files_have_the_number_of_their_line_and_some_words(of_text: PictureGenerator) -> None:
    wishes = [
        Wish("A small, RED bird!", line=1),
        Wish("птица", 11, 5, None, 4),
        Wish("a blue bird", None, None, "blue", 5),
    ]
    one, other, named = plan(of_text, wishes, 1, 7, "p.txt")
    assert (one.condition, one.num, one.seed) == ("A small, RED bird!", 1, 7)
    assert one.files == ["00001-a-small-red-bird.png"]
    assert other.seed == 5
    assert other.files[:2] == ["00004-prompt-00.png", "00004-prompt-01.png"]
    assert len(other.files) == 11
    assert named.files == ["blue.png"]
    (single,) = plan(of_text, [Wish("a blue bird")], 2, 0)
    assert single.files == ["a-blue-bird-0.png", "a-blue-bird-1.png"]


def test_classes_are_named_too(of_class: PictureGenerator) -> None:
    (made,) = plan(of_class, [Wish("great grey owl")], 1, 0)
    assert (made.condition, made.files) == (2, ["class-2-great-grey-owl.png"])


def test_all_bad_lines_are_found_before_anything_is_generated(
    of_text: PictureGenerator, of_class: PictureGenerator
) -> None:
    wishes = [Wish("a bird", line=1), Wish("a \x0b bird", line=2), Wish("a \x07", line=9)]
    with pytest.raises(ListError, match=r"^p\.txt, line 2: a prompt must be one line.*: 9\)"):
        plan(of_text, wishes, 1, 0, "p.txt")
    wishes = [Wish("1", line=1), Wish("7", line=2)]
    with pytest.raises(ListError, match=r"^p\.csv, line 2: class must lie in 0 \.\. 3"):
        plan(of_class, wishes, 1, 0, "p.csv")
    wishes = [Wish("1", 2, None, "a", 2), Wish("1", None, None, "A-1", 3)]
    with pytest.raises(ListError, match=r"line 3: name must be of one line alone: A-1\.png"):
        plan(of_class, wishes, 1, 0, "p.csv")


# Folders


def _fill(generator: PictureGenerator, path: Path, wishes: list[Wish], **options: Any) -> Filled:
    planned = plan(generator, wishes, 1, options.pop("seed", 0), "p.txt")
    config = generator.sampler(**options)
    return fill_folder(generator, planned, PictureFolder.open(path), config, "abc", progress=False)


def _index(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((path / "index.json").read_text())["pictures"]
    return found


WISHES = [Wish("a red bird", 3, None, None, 1), Wish("a blue bird " * 200, None, 5, "long", 2)]


def test_a_folder_says_what_it_holds(of_text: PictureGenerator, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    assert _fill(of_text, out, WISHES) == Filled(4, 0)
    listed = _index(out)
    assert {entry["file"] for entry in listed} == {
        path.name for path in out.iterdir() if path.name != "index.json"
    }
    first = listed[0]
    assert first == {
        "file": "00001-a-red-bird-0.png",
        "text": "a red bird",
        "seed": 0,
        "index": 0,
        "guidance": 2.0,
        "truncation": 0.9,
        "stride": 1,
        "model_sha256": "abc",
    }
    assert listed[-1]["num_tokens_dropped"] > 400
    made = of_text.generate_for_texts(["a red bird"], 3, progress=False).images
    for index, image in enumerate(made):
        np.testing.assert_array_equal(Image.open(out / f"00001-a-red-bird-{index}.png"), image)


def test_a_second_run_draws_only_what_is_missing_or_other(
    of_text: PictureGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill(of_text, tmp_path, WISHES)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert _fill(of_text, tmp_path, WISHES) == Filled(0, 4)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "long.png").unlink()
    assert _fill(of_text, tmp_path, WISHES) == Filled(1, 3)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert _fill(of_text, tmp_path, WISHES, guidance=1.0) == Filled(4, 0)
    assert _fill(of_text, tmp_path, WISHES, guidance=1.0, seed=2) == Filled(3, 1)
    # What else is in the folder stays, and stays in the index.
    assert _fill(of_text, tmp_path, [Wish("a bird", None, None, "new", 1)]) == Filled(1, 0)
    assert len(_index(tmp_path)) == 5


def test_more_pictures_of_a_prompt_keep_those_that_are_there(
    of_text: PictureGenerator, tmp_path: Path
) -> None:
    _fill(of_text, tmp_path, [Wish("a red bird", 3, None, "red", 1)])
    assert _fill(of_text, tmp_path, [Wish("a red bird", 5, None, "red", 1)]) == Filled(2, 3)


def test_a_picture_of_an_earlier_way_of_drawing_is_drawn_again(
    of_text: PictureGenerator, tmp_path: Path
) -> None:
    """Entries once held `num`, because what was drawn depended on it."""
    _fill(of_text, tmp_path, WISHES)
    entries = [{**entry, "num": 3} for entry in _index(tmp_path)]
    (tmp_path / "index.json").write_text(json.dumps({"pictures": entries}))
    assert _fill(of_text, tmp_path, WISHES) == Filled(4, 0)


@pytest.mark.parametrize("size", [1, 2, 3, 64])
def test_files_do_not_depend_on_batches_order_or_what_was_there(
    of_text: PictureGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    names = ["one", "two", "three", "four", "five"]
    wishes = [
        Wish(f"a {name} red bird " * (1 + 9 * line), 1 + line % 2, line % 3, name, line)
        for line, name in enumerate(names, 1)
    ]
    for wish in wishes:  # one after the other
        _fill(of_text, tmp_path / "alone", [wish])
    alone = {path.name: path.read_bytes() for path in (tmp_path / "alone").glob("*.png")}
    assert len(set(alone.values())) == len(alone) == 8
    monkeypatch.setattr(pictures_module, "MAX_BATCH", size)
    together, resumed = tmp_path / "together", tmp_path / "resumed"
    assert _fill(of_text, together, wishes[::-1]) == Filled(8, 0)
    _fill(of_text, resumed, wishes[2:4])
    assert _fill(of_text, resumed, wishes) == Filled(5, 3)
    for folder in (together, resumed):
        assert {path.name: path.read_bytes() for path in folder.glob("*.png")} == alone


def test_prompts_are_drawn_in_batches(
    of_text: PictureGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = tiny_models.watch_batches(of_text, monkeypatch)
    monkeypatch.setattr(pictures_module, "MAX_BATCH", 4)
    wishes = [Wish(f"a bird {line}", None, None, f"n{line}", line) for line in range(1, 11)]
    assert _fill(of_text, tmp_path, wishes) == Filled(10, 0)
    assert sizes == [4, 4, 2]


def test_an_interrupted_run_keeps_what_it_has(
    of_text: PictureGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures_module, "MAX_BATCH", 2)
    original, drawn = of_text.draw_batch, []

    def interrupted(asked, *rest):  # type: ignore[no-untyped-def]
        if len(drawn) == 1:
            raise KeyboardInterrupt
        drawn.append(asked)
        return original(asked, *rest)

    monkeypatch.setattr(of_text, "draw_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _fill(of_text, tmp_path, WISHES)
    assert len(_index(tmp_path)) == 2
    monkeypatch.setattr(of_text, "draw_batch", original)
    assert _fill(of_text, tmp_path, WISHES) == Filled(2, 2)
    fresh = tmp_path / "fresh"
    _fill(of_text, fresh, WISHES)
    for path in fresh.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("content", ["{", "[]", '{"pictures": [1]}', '{"pictures": [{}]}'])
def test_a_broken_index_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(ValueError, match="must be the index of such a folder") as caught:
        PictureFolder.open(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--out must be a folder here"):
        PictureFolder.open(_file(tmp_path, "x"))


def test_files_of_other_origin_are_never_replaced(
    of_class: PictureGenerator, tmp_path: Path
) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    planned = plan(of_class, [Wish("2")], 1, 0)
    (name,) = planned[0].files
    (out / name).write_bytes(b"mine")
    config = of_class.default_sampler()
    with pytest.raises(ValueError, match=r"must not hold other files .*; move it away"):
        fill_folder(of_class, planned, PictureFolder.open(out), config, "m", progress=False)
    assert [path.name for path in out.iterdir()] == [name]
    assert (out / name).read_bytes() == b"mine"
    (out / name).unlink()
    (out / "note.txt").write_text("mine")
    fill_folder(of_class, planned, PictureFolder.open(out), config, "m", progress=False)
    assert {path.name for path in out.iterdir()} == {name, "note.txt", "index.json"}
