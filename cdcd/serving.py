"""The registered model: a video, a text or a class in, files out.

MLflow runs this file by itself when it loads the model (models-from-code), so it pickles nothing:
the weights are safetensors among the model's artifacts, the code is a copy of `cdcd` and `kernels`.
`cdcd generate --model models:/…` loads the same class.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INTERNAL_ERROR

if TYPE_CHECKING:
    from cdcd.requests import Limits, NewFolders

FORMAT = 1
"""The `cdcd.MODEL_FORMAT` that this file belongs to."""
COLUMNS = {
    "dance2music": ("video", "video_base64"),
    "text2image": ("text",),
    "class2image": ("class",),
}
"""The columns of which each task reads one."""
EXAMPLES = {
    "video": '{"video": ["dance.mp4"]}, or video_base64',
    "text": '{"text": ["a small red bird with black wings"]}',
    "class": '{"class": [3]}',
}
MEDIA = ("wav", "mp4")
logger = logging.getLogger(__name__)


class RequestError(MlflowException, ValueError):  # type: ignore[misc]
    """What was asked for cannot be given; one line.

    In a process of yours a ValueError; the scoring server answers 400 with a JSON of `error_code`
    and `message`, or 500 where the fault is the server's.
    """

    def __init__(self, message: str, error_code: int = BAD_REQUEST) -> None:
        MlflowException.__init__(self, " ".join(message.split()), error_code=error_code)

    def serialize_as_json(self) -> str:
        """The answer; MLflow would put all that was sent before the message."""
        return json.dumps({"error_code": self.error_code, "message": str(self.args[0])})


class ServedModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Music for dance videos, or pictures from text or of classes: whatever the model was made for.

    Every row has one column that the task needs, and may have `seed` (default 0), `guidance` and
    `truncation` (default: those the model was scored with), and one of `out`, a path, and
    `as_base64`, true for the file's bytes in the answer. Without either, files go into a new
    temporary folder, or into the answer where a server takes no paths.

    - `video`, a path, or `video_base64`, a file's bytes. `out` ends in .wav or .mp4; without it
      `format` is wav (default) or mp4. Columns that come back: `audio_path` or `audio_base64`,
      `sample_rate_hz`, `duration_seconds`.
    - `text`, or `class` by number or name: `num` pictures (default 1). `out` ends in .png, or is
      the folder of several. Columns that come back: `image_paths` or `images_base64` (lists),
      `width`, `height`, `num_tokens_dropped` (of a text that is longer than the model reads).

    What a request may ask for, and when paths are taken: `cdcd.requests`.
    """

    def __init__(self) -> None:
        # A server answers in threads; the network is one, and two would only slow each other down.
        self._lock = threading.Lock()

    @classmethod
    def of(cls, artifacts: Mapping[str, Path | None]) -> ServedModel:
        """Load a model from the folders of its artifacts.

        Args:
            artifacts: `model`, `codec`, and perhaps `encoder` and `sampler`.

        Raises:
            ValueError: a folder is missing or damaged, or they do not belong together.
        """
        from cdcd.generation.base import read_sampler, read_task
        from cdcd.requests import Limits
        from cdcd.tasks import load_generator

        Limits.from_environment()  # a wrong setting shall stop a server when it starts
        served = cls()
        model, codec = artifacts["model"], artifacts["codec"]
        assert model is not None
        assert codec is not None
        served._columns = COLUMNS[read_task(model)]
        sampler = read_sampler(artifacts.get("sampler"))
        served.generator = load_generator(model, codec, artifacts.get("encoder"), sampler)
        return served

    generator: Any
    """Of music or of pictures; see `cdcd.generation`."""
    _columns: tuple[str, ...]

    def load_context(self, context: Any) -> None:
        """Load the generator of the task that the model's artifacts name.

        Raises:
            RequestError: the process has imported a cdcd that reads other models.
        """
        import cdcd

        theirs = getattr(cdcd, "MODEL_FORMAT", 0)
        if theirs != FORMAT:
            raise RequestError(
                f"a model of format {FORMAT} must be loaded with the code that it holds: this "
                f"process has imported cdcd of format {theirs} from {Path(cdcd.__file__).parent}; "
                "load it in a process that has not imported cdcd"
            )
        loaded = self.of({name: Path(path) for name, path in context.artifacts.items()})
        self.generator, self._columns = loaded.generator, loaded._columns

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Generate for each row; all rows are looked at before the first is generated.

        Raises:
            RequestError: the task's column is missing, or a row cannot be used.
        """
        from cdcd.requests import is_served

        try:
            return self._answer(pd.DataFrame(model_input))
        except RequestError:
            raise
        except ValueError as error:
            raise RequestError(str(error)) from error
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise RequestError(f"a file failed: {reason}", INTERNAL_ERROR) from error
        except Exception as error:
            if not is_served():
                raise
            logger.exception("a request failed")
            told = f"generating failed: {type(error).__name__}; see the server's log"
            raise RequestError(told, INTERNAL_ERROR) from error

    def _answer(self, frame: pd.DataFrame) -> pd.DataFrame:
        from cdcd.requests import Limits, NewFolders

        limits = Limits.from_environment()
        given = [name for name in self._columns if name in frame.columns]
        if not given:
            first = self._columns[0]
            raise ValueError(
                f"the input must have a column {' or '.join(self._columns)}: got "
                f"{sorted(map(str, frame.columns)) or 'none that the model knows'}; "
                f"use {EXAMPLES[first]}"
            )
        rows = _one_each(frame, given).to_dict("records")
        limits.check_rows(len(rows))
        folders = NewFolders()
        try:
            if "video" in self._columns:
                return self._all_music(rows, limits, folders)
            return self._all_pictures(rows, limits, folders)
        except BaseException:
            folders.remove()
            raise

    def _all_music(
        self, rows: list[dict[Any, Any]], limits: Limits, folders: NewFolders
    ) -> pd.DataFrame:
        with tempfile.TemporaryDirectory(prefix="cdcd-") as work:
            dances = self._dances(rows, limits, folders, Path(work))
            with self._lock:
                return _table([self._music(dance) for dance in dances])

    def _all_pictures(
        self, rows: list[dict[Any, Any]], limits: Limits, folders: NewFolders
    ) -> pd.DataFrame:
        wishes = []
        for index, row in enumerate(rows):
            with _told_by_row(index, len(rows)):
                wishes.append(self._wish(row, folders))
        limits.check_pictures(sum(wish.num for wish in wishes))
        with self._lock:
            return _table([self._pictures(wish) for wish in wishes])

    def _dances(
        self, rows: list[dict[Any, Any]], limits: Limits, folders: NewFolders, work: Path
    ) -> list[_Dance]:
        from cdcd.media import probe
        from cdcd.requests import num_bytes

        limits.check_upload(sum(num_bytes(row.get("video_base64")) for row in rows))
        seconds, dances = 0.0, []
        for index, row in enumerate(rows):
            own = work / str(index)
            with _told_by_row(index, len(rows), own):
                # Numbers and places first: they cost nothing.
                options = _options(row, seed=int, guidance=float, truncation=float)
                _check_seed(options.get("seed", 0))
                self.generator.sampler(options.get("guidance"), options.get("truncation"))
                out = _music_place(row, folders)
                video = _video(row, own)
                if out is not None and out.resolve() == video.resolve():
                    raise ValueError("out must differ from video: got one path for both; rename it")
                seconds += probe(video).duration_seconds
                dances.append(_Dance(video, out, _format(row), options))
            limits.check_seconds(seconds)
        return dances

    def _music(self, dance: _Dance) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="cdcd-") as folder:
            path = dance.out or Path(folder) / f"{dance.video.stem}.{dance.format}"
            made = self.generator.generate_for_video(
                dance.video, path, progress=False, **dance.options
            )
            return {
                "audio_path": None if dance.out is None else str(path),
                "audio_base64": _encoded(path) if dance.out is None else None,
                "sample_rate_hz": int(made["sample_rate_hz"]),
                "duration_seconds": float(made["duration_seconds"]),
            }

    def _wish(self, row: dict[Any, Any], folders: NewFolders) -> _Wish:
        from cdcd.generation.pictures import check_num

        (column,) = self._columns
        cell, num_dropped = row[column], 0
        condition: str | int
        if column == "text":
            prompt = self.generator.check_text(cell)
            condition, num_dropped = prompt.text, prompt.cut.num_dropped if prompt.cut else 0
        else:
            is_whole = isinstance(cell, float) and cell.is_integer()
            condition = self.generator.find_class(int(cell) if is_whole else cell)
        options = _options(row, num=int, seed=int)
        num, seed = options.get("num", 1), options.get("seed", 0)
        check_num(num)
        _check_seed(seed)
        config = self.generator.sampler(**_options(row, guidance=float, truncation=float))
        paths = _picture_places(row, num, folders)
        return _Wish(condition, num, seed, config, paths, num_dropped)

    def _pictures(self, wish: _Wish) -> dict[str, Any]:
        from cdcd.pictures import save_png

        drawn = self.generator.draw(wish.condition, wish.num, wish.seed, wish.config)
        images = chain.from_iterable(drawn)
        encoded = None
        if wish.paths is None:
            with tempfile.TemporaryDirectory(prefix="cdcd-") as folder:
                path = Path(folder) / "picture.png"
                encoded = []
                for image in images:
                    save_png(image, path)
                    encoded.append(_encoded(path))
        else:
            for path, image in zip(wish.paths, images, strict=True):
                save_png(image, path)
        side = int(self.generator.image_size)
        return {
            "image_paths": None if wish.paths is None else [str(path) for path in wish.paths],
            "images_base64": encoded,
            "width": side,
            "height": side,
            "num_tokens_dropped": wish.num_tokens_dropped,
        }


class _Dance(NamedTuple):
    """A row with a video that was looked at; without a path the answer holds the file."""

    video: Path
    out: Path | None
    format: str
    options: dict[str, Any]


class _Wish(NamedTuple):
    """A row for pictures that was looked at; without paths the answer holds the files."""

    condition: str | int
    num: int
    seed: int
    config: Any
    paths: list[Path] | None
    num_tokens_dropped: int


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The answer; None stays None beside texts, for NaN is no JSON."""
    frame = pd.DataFrame(rows)
    for name in frame.columns:
        if not all(isinstance(row[name], int | float) for row in rows):
            frame[name] = pd.Series([row[name] for row in rows], dtype=object)
    return frame


@contextlib.contextmanager
def _told_by_row(index: int, num: int, own: Path | None = None) -> Iterator[None]:
    """Say which of several rows cannot be used, without the folder that its file was put into."""
    try:
        yield
    except ValueError as error:
        told = str(error) if own is None else str(error).replace(f"{own}{os.sep}", "")
        raise ValueError(told if num == 1 else f"row {index + 1}: {told}") from error


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must lie in 0 .. 2**63 - 1: got {seed}; use 0")


def _video(row: dict[Any, Any], folder: Path) -> Path:
    """The video of a row; one that came as bytes is written into a folder of its own."""
    from cdcd.requests import check_video_file, decode_file, is_guarded, named_path

    names = [name for name in COLUMNS["dance2music"] if _given(row.get(name))]
    if len(names) != 1:
        raise ValueError(
            f"a row must have one of video and video_base64: got {' and '.join(names) or 'none'}; "
            "give a path, or a file's bytes"
        )
    if names == ["video"]:
        video = named_path(row["video"], "video", "send video_base64")
        if is_guarded():
            check_video_file(video, "video")
        return video
    folder.mkdir()
    video = folder / "video_base64"
    video.write_bytes(decode_file(row["video_base64"], "video_base64"))
    check_video_file(video, "video_base64")
    return video


def _wants_base64(row: dict[Any, Any]) -> bool:
    """Whether the answer shall hold the files."""
    from cdcd.requests import takes_paths

    cell = row.get("as_base64")
    if not _given(cell):
        return not _given(row.get("out")) and not takes_paths()
    if not isinstance(cell, bool | np.bool_):
        raise ValueError(f"as_base64 must be true or false: got {str(cell)[:40]!r}; change it")
    if cell and _given(row.get("out")):
        raise ValueError("a row must have one of out and as_base64: got both; leave one out")
    return bool(cell)


def _format(row: dict[Any, Any]) -> str:
    cell = row.get("format")
    if not _given(cell):
        return "wav"
    if cell not in MEDIA:
        raise ValueError(f"format must be wav or mp4: got {str(cell)[:40]!r}; change it")
    if _given(row.get("out")):
        raise ValueError("a row must have one of out and format: got both; leave one out")
    return str(cell)


def _music_place(row: dict[Any, Any], folders: NewFolders) -> Path | None:
    from cdcd.requests import named_path

    kind = _format(row)
    if _wants_base64(row):
        return None
    if not _given(row.get("out")):
        name = Path(str(row["video"])).stem if _given(row.get("video")) else "music"
        return folders.new() / f"{name[:100]}.{kind}"
    out = named_path(row["out"], "out", "ask for as_base64")
    if out.suffix.lower() not in {".wav", ".mp4"}:
        raise ValueError(f"out must end in .wav or .mp4: got {out.name[:100]}; rename it")
    return out


def _picture_places(row: dict[Any, Any], num: int, folders: NewFolders) -> list[Path] | None:
    from cdcd.requests import named_path

    if _wants_base64(row):
        return None
    if not _given(row.get("out")):
        place = folders.new()
        place = place / "picture.png" if num == 1 else place
    else:
        place = named_path(row["out"], "out", "ask for as_base64")
        if num == 1 and place.suffix.lower() != ".png":
            raise ValueError(
                f"out must end in .png for one picture: got {place.name[:100]}; rename it"
            )
        if num > 1 and place.is_file():
            raise ValueError(
                f"out must be a folder for {num} pictures: {place.name} is a file; rename it"
            )
    digits = len(str(num - 1))
    return [place] if num == 1 else [place / f"{index:0{digits}d}.png" for index in range(num)]


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")


def _one_each(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """A row for each wish: MLflow turns {"text": ["a", "b"]} into one row with lists in it."""

    def is_list(cell: Any) -> bool:
        return isinstance(cell, list | tuple | np.ndarray)

    if not any(is_list(cell) for column in columns for cell in frame[column]):
        return frame
    lists = [str(name) for name in frame.columns if any(map(is_list, frame[name]))]
    try:
        return frame.explode(lists, ignore_index=True)
    except ValueError:
        raise ValueError(
            f"lists of the columns {', '.join(lists)} must be of equal length: got others; give "
            "one entry for each"
        ) from None


def _given(value: Any) -> bool:
    """Whether an optional cell holds a value; a missing column, None, NaN and NA do not."""
    return not (pd.api.types.is_scalar(value) and pd.isna(value))


def _options(row: dict[Any, Any], **kinds: type[int] | type[float]) -> dict[str, Any]:
    """The optional cells that hold a value, as numbers."""
    return {
        name: _number(name, row[name], kind)
        for name, kind in kinds.items()
        if _given(row.get(name))
    }


def _number(name: str, cell: Any, kind: type[int] | type[float]) -> float:
    """A cell as a number; a column with gaps turns whole numbers into floats."""
    try:
        number = None if isinstance(cell, bool | np.bool_) else kind(cell)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or (isinstance(cell, float) and number != cell):
        asked = "a whole number" if kind is int else "a number"
        told = repr(cell)[:40]
        raise ValueError(f"{name} must be {asked}: got {told}; change it or leave it out")
    return number


mlflow.models.set_model(ServedModel())
