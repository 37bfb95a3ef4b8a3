"""Words and pictures to vectors with a frozen CLIP, read from a local folder in the hub's layout.

The folder holds `config.json`, `model.safetensors` (or a `pytorch_model.bin` that loads without
running code), `tokenizer.json` (or `vocab.json` and `merges.txt`) and, where pictures are prepared
otherwise than usual, `preprocessor_config.json`. Nothing is ever downloaded.
"""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cdcd.data.files import sha256_file
from cdcd.features.base import FeatureError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

logger = logging.getLogger(__name__)

START, END = "<|startoftext|>", "<|endoftext|>"
CONFIG = "config.json"
SAFETENSORS, TORCH_FILE = "model.safetensors", "pytorch_model.bin"
TOKENIZER, VOCABULARY, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
PREPROCESSOR = "preprocessor_config.json"
LAYOUT = (CONFIG, SAFETENSORS, TORCH_FILE, TOKENIZER, VOCABULARY, MERGES, PREPROCESSOR)
"""Files of a folder that are read, where they are there."""

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's training pictures, red, green and blue in 0 .. 1."""

MAX_CHARACTERS = 100_000
"""Of one prompt; 77 tokens hold a few hundred."""

_BICUBIC = 3
_MAX_ASPECT = 8
_MARKERS = re.compile(r"<\|(?=(?:startoftext|endoftext)\|>)", re.IGNORECASE)
_REMEDY = "use a folder such as that of openai/clip-vit-base-patch32"


class PromptError(ValueError):
    """A text that cannot be a prompt; one line."""


class Tokens(NamedTuple):
    """Texts as numbers.

    Attributes:
        ids: int64 `[b, s]`; start token, words, end token, and end tokens up to the longest.
        lengths: int64 `[b]`, entries of `ids` that count, start and end tokens included.
        truncated: bool `[b]`, whether words were left out.
        num_dropped: int64 `[b]`, how many tokens were.
        num_known: int64 `[b]`, tokens of the whole text that mean something to the encoder.
        num_unknown: int64 `[b]`, those that do not.
    """

    ids: Tensor
    lengths: Tensor
    truncated: Tensor
    num_dropped: Tensor
    num_known: Tensor
    num_unknown: Tensor


class Encoded(NamedTuple):
    """Texts as sequences: float32 `[b, s, d]`, zero beyond `lengths`, int64 `[b]`."""

    sequence: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class Cut:
    """What was left out of a text.

    Attributes:
        num_tokens: of the whole text, start and end tokens included.
        num_dropped: tokens that were left out.
        kept: the text up to the cut.
    """

    num_tokens: int
    num_dropped: int
    kept: str


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes the input of the network.

    Attributes:
        size: pixels per side of the input.
        shorter_side: to which a picture is scaled before the centre is cut out.
        resample: PIL's number of the filter.
        mean: of red, green and blue in 0 .. 1.
        std: likewise.
    """

    size: int
    shorter_side: int
    resample: int = _BICUBIC
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def __call__(self, image: np.ndarray) -> Tensor:
        """Scale, cut and normalise one picture.

        Args:
            image: uint8 `[h, w, 3]` RGB.

        Returns:
            float32 `[3, size, size]`.

        Raises:
            FeatureError: the array is no such picture.
        """
        return self.normalised(torch.from_numpy(self.crop(image))[None])[0]

    def crop(self, image: np.ndarray) -> np.ndarray:
        """Scale and cut only: uint8 `[h, w, 3]` to uint8 `[size, size, 3]`."""
        from PIL import Image

        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise FeatureError(
                f"a picture must be uint8 [h, w, 3]: got {image.dtype} {list(image.shape)}; "
                "decode it with cdcd.data.images.decode_image"
            )
        image = _central_part(image)
        height, width = image.shape[:2]
        short = min(height, width)
        scaled = (
            int(self.shorter_side * width / short),
            int(self.shorter_side * height / short),
        )
        if scaled != (width, height):
            picture = Image.fromarray(np.ascontiguousarray(image), "RGB")
            image = np.asarray(picture.resize(scaled, Image.Resampling(self.resample)))
        # Rounded as the public preparation does, which decides where an odd rest goes.
        left, top = (round((side - self.size) / 2.0) for side in scaled)
        return np.array(image[top : top + self.size, left : left + self.size])

    def normalised(self, crops: Tensor) -> Tensor:
        """Turn crops uint8 `[n, size, size, 3]` into float32 `[n, 3, size, size]`."""
        mean, std = (torch.tensor(x, device=crops.device).view(3, 1, 1) for x in self._moments)
        return (crops.permute(0, 3, 1, 2).float() / 255 - mean) / std

    @property
    def _moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.mean, self.std


def check_prompt(text: str) -> str:
    """Return a text without blanks around it, if it can be a prompt for any encoder.

    Raises:
        PromptError: it is empty, has line breaks, control characters or half characters, or is
            endless.
    """
    if not isinstance(text, str):
        raise PromptError(f"a prompt must be a text: got {type(text).__name__}; write it in quotes")
    if len(text) > MAX_CHARACTERS:
        raise PromptError(
            f"a prompt must have at most {MAX_CHARACTERS} characters: got {len(text)} in "
            f"{shortened(text)}; shorten it"
        )
    stripped = text.strip()
    if not stripped:
        raise PromptError(
            f"a prompt must say something: got {shortened(text)}; describe a picture, "
            "such as 'a small red bird with black wings'"
        )
    for place, character in enumerate(text):
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
            raise PromptError(
                "a prompt must be one line without control characters: got "
                f"{character!r} at character {place + 1} of {shortened(text)}; remove it"
            )
    return stripped


def shortened(text: str, limit: int = 60) -> str:
    """Quote a text for a message on one line, its middle left out where it is long."""
    if len(text) > limit:
        text = f"{text[: limit // 2]}…{text[-limit // 4 :]}"
    return repr(text)


class TextEncoder:
    """A frozen CLIP with its tokenizer and the preparation of its pictures.

    Attributes:
        model: in evaluation mode, float32, without gradients.
        tokenizer: byte-level pairs, start and end tokens put around each text.
        preparation: of pictures.
        name: of the network, from its config.
        device: where the network lies.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        preparation: Preparation,
        facts: Mapping[str, Any],
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.preparation = preparation
        self._facts = dict(facts)
        self._start, self._end = _special_tokens(tokenizer, model.config)

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> TextEncoder:
        """Read a CLIP from a folder in the hub's layout, or from `text/` inside it.

        Args:
            folder: of `openai/clip-vit-base-patch32` or another CLIP of `transformers`, or one
                that `cdcd.features.clip.train_clip` wrote.
            device: of the network.

        Raises:
            FeatureError: a file is missing or damaged, or of another architecture or shape.
        """
        folder = clip_folder(folder)
        config = _read_config(folder)
        weights = _weights_file(folder)
        tokenizer, tokenizer_sha256 = _read_tokenizer(folder)
        preparation = _read_preparation(folder, int(config.vision_config.image_size))
        model = _build(config, weights)
        facts = {
            "name": _name(config),
            "sha256": sha256_file(weights),
            "tokenizer_sha256": tokenizer_sha256,
        }
        return cls(model.to(device), tokenizer, preparation, facts)

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        device: torch.device = self.model.device
        return device

    @property
    def width(self) -> int:
        """Numbers per token of `encode`."""
        return int(self.model.config.text_config.hidden_size)

    @property
    def embed_width(self) -> int:
        """Numbers of a text's or picture's vector."""
        return int(self.model.config.projection_dim)

    @property
    def context_length(self) -> int:
        """Most tokens of a text, start and end tokens included."""
        return int(self.model.config.text_config.max_position_embeddings)

    def identity(self) -> dict[str, Any]:
        """JSON-able facts that decide the numbers."""
        return {
            **self._facts,
            "width": self.width,
            "embed_width": self.embed_width,
            "context_length": self.context_length,
        }

    def check_prompt(self, text: str) -> str:
        """Return a prompt without blanks around it; what of it is not read is logged.

        Raises:
            PromptError: see `check_prompt`; or nothing in it means anything to this encoder.
        """
        text = check_prompt(text)
        tokens = self.tokenize([text])
        if int(tokens.num_known) == 0:
            raise PromptError(
                f"a prompt must have words that the text encoder was trained on: got "
                f"{shortened(text)}; use words such as those of the dataset's captions"
            )
        if int(tokens.num_unknown):
            logger.warning(
                "%d of the %d tokens of the prompt mean nothing to the text encoder: %s",
                int(tokens.num_unknown),
                int(tokens.num_known + tokens.num_unknown),
                shortened(text),
            )
        cut = self.cut(text)
        if cut is not None:
            logger.warning(
                "the prompt is longer than the %d tokens of the text encoder: the last %d of its "
                "%d are not read, all behind %s",
                self.context_length,
                cut.num_dropped,
                cut.num_tokens,
                shortened(cut.kept[-60:]),
            )
        return text

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Turn texts into numbers, cut to `context_length`; whoever calls reports the cuts.

        Tokens that the vocabulary lacks are left out and counted as unknown; so are those, kept,
        whose embedding was never trained (zero). The markers of start and end count as plain text.

        Args:
            texts: at least one.

        Raises:
            FeatureError: no text is given.
        """
        if not texts:
            raise FeatureError("at least one text must be given: got none; give a list of texts")
        rows, num_dropped, num_known, num_unknown = [], [], [], []
        for encoding in self._encodings(texts):
            inner, num_missing = self._inner(encoding)
            room = self.context_length - 2
            rows.append([self._start, *inner[:room], self._end])
            num_dropped.append(max(0, len(inner) - room))
            num_untrained = int(self._is_untrained[inner].sum())
            num_known.append(len(inner) - num_untrained)
            num_unknown.append(num_missing + num_untrained)
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.full((len(rows), int(lengths.max())), self._end)
        for row, own in zip(rows, ids, strict=True):
            own[: len(row)] = torch.tensor(row)
        dropped, known, unknown = map(torch.tensor, (num_dropped, num_known, num_unknown))
        return Tokens(ids, lengths, dropped > 0, dropped, known, unknown)

    def cut(self, text: str) -> Cut | None:
        """Say what of a text is beyond `context_length`, or None where it fits."""
        encoding = next(self._encodings([text]))
        inner, _ = self._inner(encoding)
        room = self.context_length - 2
        if len(inner) <= room:
            return None
        spans = [
            span
            for span, i in zip(encoding.offsets, encoding.ids, strict=True)
            if i not in self._outer
        ]
        kept = _plain(text)[: spans[room - 1][1]]
        return Cut(len(inner) + 2, len(inner) - room, kept)

    @torch.no_grad()
    def encode_tokens(self, tokens: Tokens) -> Encoded:
        """Last hidden states after the final norm, on the CPU; see `Encoded`."""
        states, _ = self._run(tokens)
        inside = torch.arange(tokens.ids.shape[1]) < tokens.lengths[:, None]
        return Encoded(states.cpu() * inside[..., None], tokens.lengths)

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Turn texts into sequences for cross-attention; cut ones are logged, once for all.

        The longest of the texts decides s.
        """
        return self.encode_tokens(self._reported(texts))

    @torch.no_grad()
    def text_features(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Vectors float32 `[b, e]` of length one, on the CPU; cut texts are logged."""
        tokens = self._reported(texts)
        parts = []
        for start in range(0, len(texts), batch_size):
            part = Tokens(*(values[start : start + batch_size] for values in tokens))
            _, pooled = self._run(part)
            parts.append(self.model.text_projection(pooled))
        return normalize(torch.cat(parts), dim=-1).cpu()

    @torch.no_grad()
    def image_features(self, images: Iterable[np.ndarray] | Tensor, batch_size: int = 64) -> Tensor:
        """Vectors float32 `[n, e]` of length one, on the CPU.

        Args:
            images: uint8 `[h, w, 3]` RGB each, of any sizes, or all in one array or tensor.
            batch_size: pictures at a time.

        Raises:
            FeatureError: an array is no picture, or there is none.
        """
        parts = []
        for batch in _batches(images, batch_size):
            crops = np.stack([self.preparation.crop(np.asarray(image)) for image in batch])
            inputs = self.preparation.normalised(torch.from_numpy(crops).to(self.device))
            pooled = self.model.vision_model(pixel_values=inputs).pooler_output
            parts.append(self.model.visual_projection(pooled))
        if not parts:
            raise FeatureError("at least one picture must be given: got none")
        return normalize(torch.cat(parts), dim=-1).cpu()

    def _run(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Hidden states `[b, s, d]` and those of the end tokens `[b, d]`.

        Attention looks back only, so what pads a text behind its end changes neither.
        """
        ids = tokens.ids.to(self.device)
        states = self.model.text_model(input_ids=ids).last_hidden_state
        rows = torch.arange(len(ids), device=self.device)
        return states, states[rows, tokens.lengths.to(self.device) - 1]

    def _reported(self, texts: Sequence[str]) -> Tokens:
        tokens = self.tokenize(texts)
        if tokens.truncated.any():
            first = texts[int(tokens.truncated.int().argmax())]
            logger.warning(
                "%d of %d texts are longer than %d tokens and were cut; the first: %s",
                int(tokens.truncated.sum()),
                len(texts),
                self.context_length,
                shortened(first),
            )
        return tokens

    def _encodings(self, texts: Sequence[str]) -> Iterator[Encoding]:
        return iter(self.tokenizer.encode_batch([_plain(text) for text in texts]))

    def _inner(self, encoding: Encoding) -> tuple[list[int], int]:
        """Ids between start and end, and how many tokens the vocabulary lacks.

        CLIP's tokenizer writes the end token for them.
        """
        inner = [i for i in encoding.ids if i not in self._outer]
        num_outer = 2  # put around by the tokenizer
        return inner, len(encoding.ids) - len(inner) - num_outer

    @cached_property
    def _outer(self) -> frozenset[int]:
        name = getattr(self.tokenizer.model, "unk_token", None)
        unknown = None if name is None else self.tokenizer.token_to_id(name)
        return frozenset({self._start, self._end} | (set() if unknown is None else {unknown}))

    @cached_property
    def _is_untrained(self) -> Tensor:
        """Bool `[vocabulary]`: embeddings that are zero, as `train_clip` leaves unseen tokens."""
        table = self.model.text_model.embeddings.token_embedding.weight
        return (table == 0).all(dim=1).cpu()


def clip_folder(folder: str | Path) -> Path:
    """Return the folder that holds `config.json`: the given one or `text/` inside it.

    Raises:
        FeatureError: there is none.
    """
    folder = Path(folder)
    for found in (folder, folder / "text"):
        if (found / CONFIG).is_file():
            return found
    what = "no such folder" if not folder.is_dir() else f"it has no {CONFIG}"
    raise FeatureError(
        f"{folder} must be the folder of a CLIP in the hub's layout: {what}; {_REMEDY}"
    )


def _plain(text: str) -> str:
    # A marker inside a text would end it early.
    return _MARKERS.sub("< |", text)


def _batches(images: Iterable[np.ndarray] | Tensor, size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _central_part(image: np.ndarray) -> np.ndarray:
    """Cut a very long picture, whose scaled copy would fill the memory for its centre alone."""
    short = min(image.shape[:2])
    height, width = (min(side, _MAX_ASPECT * short) for side in image.shape[:2])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FeatureError(f"{path} must be a JSON file: {_one_line(error)}; {_REMEDY}") from None
    if not isinstance(tree, dict):
        raise FeatureError(f"{path} must hold a JSON object: got {type(tree).__name__}; {_REMEDY}")
    return tree


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _read_config(folder: Path) -> Any:
    tree = _read_json(folder / CONFIG)
    kind = tree.get("model_type")
    if kind != "clip":
        raise FeatureError(
            f"{folder / CONFIG} must be that of a whole CLIP (model_type clip): got {kind!r}; "
            f"{_REMEDY}"
        )
    from transformers import CLIPConfig

    try:
        config: Any = CLIPConfig.from_dict(tree)
        for part in (config.text_config, config.vision_config):
            part.validate_architecture()
        if not isinstance(config.vision_config.image_size, int):
            raise ValueError(f"image_size {config.vision_config.image_size!r}")
    except Exception as error:  # its fields are checked by a library with errors of its own
        raise FeatureError(
            f"{folder / CONFIG} must describe a CLIP: {_one_line(error)}; {_REMEDY}"
        ) from None
    return config


def _name(config: Any) -> str:
    told = Path(str(getattr(config, "name_or_path", None) or "")).name
    vision = config.vision_config
    return told or f"clip-patch{vision.patch_size}-{vision.image_size}"


def _weights_file(folder: Path) -> Path:
    for name in (SAFETENSORS, TORCH_FILE):
        if (folder / name).is_file():
            return folder / name
    raise FeatureError(
        f"{folder} must hold the weights of its CLIP: no {SAFETENSORS} and no {TORCH_FILE}; "
        f"{_REMEDY}"
    )


def _build(config: Any, weights: Path) -> Any:
    from transformers import CLIPModel

    # Drawing 150 million numbers to overwrite them would take time and the caller's randomness.
    with torch.device("meta"):
        model: Any = CLIPModel(config)
    state = _read_weights(weights)
    # Older files hold the numbers 0, 1, 2, ... of the positions as well.
    state = {k: v for k, v in state.items() if not k.endswith(".position_ids")}
    expected = {name: value.shape for name, value in model.state_dict().items()}
    missing = sorted(expected.keys() - state.keys())
    unknown = sorted(state.keys() - expected.keys())
    if missing or unknown:
        told = [f"no {missing[0]}"] if missing else []
        told += [f"an unknown {unknown[0]}"] if unknown else []
        raise FeatureError(
            f"{weights} must hold the CLIP that {CONFIG} describes: it has {' and '.join(told)} "
            f"({len(missing)} missing, {len(unknown)} unknown); {_REMEDY}"
        )
    for name, shape in expected.items():
        if state[name].shape != shape:
            raise FeatureError(
                f"{weights} must hold the CLIP that {CONFIG} describes: {name} must have shape "
                f"{list(shape)}: got {list(state[name].shape)}; use both from one folder"
            )
    model.load_state_dict({k: v.float() for k, v in state.items()}, strict=True, assign=True)
    for name, buffer in list(model.named_buffers()):
        assert name.endswith("position_ids"), name
        owner, _, own = name.rpartition(".")
        positions = torch.arange(buffer.shape[-1]).expand(buffer.shape).clone()
        model.get_submodule(owner).register_buffer(own, positions, persistent=False)
    return model


def _read_weights(path: Path) -> dict[str, Tensor]:
    import pickle

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.name == SAFETENSORS:
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise FeatureError(
            f"{path} must load without running code: it holds more than tensors; convert it to "
            f"{SAFETENSORS}"
        ) from None
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise FeatureError(f"{path} must be whole: {_one_line(error)}; copy it again") from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise FeatureError(f"{path} must hold a table of tensors; convert it to {SAFETENSORS}")
    return state


def _read_tokenizer(folder: Path) -> tuple[Tokenizer, str]:
    from tokenizers import Tokenizer

    whole, vocabulary, merges = (folder / name for name in (TOKENIZER, VOCABULARY, MERGES))
    if whole.is_file():
        try:
            tokenizer = Tokenizer.from_file(str(whole))
        except Exception as error:  # the library raises plain exceptions
            raise FeatureError(
                f"{whole} must be a tokenizer: {_one_line(error)}; {_REMEDY}"
            ) from None
        digest = sha256_file(whole)
    elif vocabulary.is_file() and merges.is_file():
        tokenizer = clip_tokenizer(_read_json(vocabulary), _read_merges(merges))
        digest = sha256_file(vocabulary)
    else:
        raise FeatureError(
            f"{folder} must hold the tokenizer of its CLIP: no {TOKENIZER}, and not both "
            f"{VOCABULARY} and {MERGES}; {_REMEDY}"
        )
    tokenizer.no_truncation()  # we cut, because we report it
    tokenizer.no_padding()
    return tokenizer, digest


def clip_tokenizer(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> Tokenizer:
    """CLIP's way of cutting a text into pieces, over a vocabulary: lower case, pairs of bytes.

    Raises:
        FeatureError: vocabulary and merges do not belong together.
    """
    from transformers import CLIPTokenizer

    pairs: Any = list(merges)
    try:
        return CLIPTokenizer(vocab=dict(vocabulary), merges=pairs).backend_tokenizer
    except Exception as error:  # the library raises plain exceptions
        raise FeatureError(
            f"{VOCABULARY} and {MERGES} must be those of a CLIP: {_one_line(error)}; {_REMEDY}"
        ) from None


def _read_merges(path: Path) -> list[tuple[str, str]]:
    pairs = []
    for line in path.read_text(encoding="utf-8").splitlines():
        pair = line.split()
        if len(pair) == 2 and not line.startswith("#version"):
            pairs.append((pair[0], pair[1]))
    return pairs


def _special_tokens(tokenizer: Tokenizer, config: Any) -> tuple[int, int]:
    """Ids of start and end, once it is sure that tokenizer and network belong together."""
    start, end = tokenizer.token_to_id(START), tokenizer.token_to_id(END)
    if start is None or end is None:
        raise FeatureError(f"the tokenizer must know {START} and {END}: it does not; {_REMEDY}")
    text = config.text_config
    if tokenizer.get_vocab_size() > text.vocab_size:
        raise FeatureError(
            f"the tokenizer must have at most the {text.vocab_size} tokens of its CLIP: got "
            f"{tokenizer.get_vocab_size()}; use both from one folder"
        )
    # The published configs say 2, which is none of the tokens: the highest id is meant.
    if text.eos_token_id not in (2, end):
        raise FeatureError(
            f"the tokenizer's {END} must be token {text.eos_token_id} of its CLIP: got {end}; "
            "use both from one folder"
        )
    ids = tokenizer.encode("a").ids
    if len(ids) < 3 or (ids[0], ids[-1]) != (start, end):
        raise FeatureError(
            f"the tokenizer must put {START} and {END} around a text: got {ids} for 'a'; {_REMEDY}"
        )
    return start, end


def _read_preparation(folder: Path, size: int) -> Preparation:
    path = folder / PREPROCESSOR
    if not path.is_file():
        return Preparation(size, size)
    tree = _read_json(path)
    try:
        shorter = tree.get("size", size)
        shorter = shorter.get("shortest_edge", 0) if isinstance(shorter, dict) else shorter
        cut = tree.get("crop_size", size)
        cut = cut["height"] if isinstance(cut, dict) else cut
        mean = tuple(float(x) for x in tree.get("image_mean", MEAN))
        std = tuple(float(x) for x in tree.get("image_std", STD))
        shorter, cut, resample = int(shorter), int(cut), int(tree.get("resample", _BICUBIC))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise FeatureError(
            f"{path} must say size, crop_size, image_mean and image_std: {error!r}; {_REMEDY}"
        ) from None
    is_sound = len(mean) == len(std) == 3 and min(std) > 0 and 0 <= resample <= 5
    if not is_sound or cut != size or shorter < size:
        raise FeatureError(
            f"{path} must prepare pictures of {size} x {size} for its CLIP: got size {shorter}, "
            f"crop_size {cut}, mean {mean}, std {std}; use both from one folder"
        )
    return Preparation(size, shorter, resample, mean, std)
