"""Conditions of a picture: the text it is drawn from, or the class it belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from cdcd.models.conditioner import Condition
from cdcd.models.inputs import PictureInputs


@dataclass(frozen=True)
class TextSpec:
    """Shape of the text conditioner: texts come encoded, from a network that is not trained here.

    Attributes:
        dim: width of the text encoder's output (512 for CLIP ViT-B/32).
        num_positions: entries of the longest text, start and end included (77 for CLIP).
    """

    dim: int
    num_positions: int
    kind: Literal["text"] = "text"


@dataclass(frozen=True)
class ClassSpec:
    """Shape of the class conditioner.

    Attributes:
        num_classes: classes, without the entry that stands for none.
        dim: width of the embedding (512 in the paper, C.3).
        mode: through the norms, as released (D37), or as the one entry of cross-attention.
    """

    num_classes: int
    dim: int = 512
    mode: Literal["adaln", "cross_attention"] = "adaln"
    kind: Literal["class"] = "class"


class TextConditioner(nn.Module):
    """Encoded texts as they are, or one learned vector where a text is dropped.

    Args:
        dim: width of the encoded text.
        num_positions: the longest text, in entries.
        has_vector: also give the mean over valid entries, for the norms.
    """

    def __init__(self, dim: int, num_positions: int, has_vector: bool) -> None:
        super().__init__()
        self.num_positions = num_positions
        self.has_vector = has_vector
        self.absent = nn.Parameter(torch.randn(dim) * 0.02)

    def forward(self, inputs: PictureInputs) -> Condition:
        """Texts of a batch; entries beyond a text's length are masked, and never read.

        Raises:
            ValueError: a text is longer than the model was built for.
        """
        b, dim = len(inputs), len(self.absent)
        if inputs.text is None or inputs.length is None:
            sequence = self.absent.expand(b, 1, dim)
            mask = torch.ones(b, 1, dtype=torch.bool, device=inputs.device)
        else:
            s = inputs.text.shape[1]
            if s > self.num_positions:
                raise ValueError(
                    f"a text must have at most the {self.num_positions} entries the model was "
                    f"built for: got {s}; cut it or train again"
                )
            has = inputs.has_condition
            # A dropped text is one entry, whatever its length was.
            length = torch.where(has, inputs.length, 1)
            mask = torch.arange(s, device=inputs.device) < length[:, None]
            is_read = (mask & has[:, None])[..., None]
            sequence = torch.where(is_read, inputs.text.to(self.absent.dtype), self.absent)
        vector = None
        if self.has_vector:
            weight = mask.to(sequence.dtype)[..., None]
            vector = (sequence * weight).sum(1) / weight.sum(1)
        return Condition(sequence=sequence, mask=mask, vector=vector)


class ClassConditioner(nn.Module):
    """A learned vector for each class, and one more for none.

    Args:
        num_classes: classes.
        dim: width of the embedding; None where the blocks hold tables of their own and only want
            the class.
        is_sequence: attend to the vector instead of modulating the norms with it.
    """

    def __init__(self, num_classes: int, dim: int | None, is_sequence: bool) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.is_sequence = is_sequence
        self.table = None if dim is None else nn.Embedding(num_classes + 1, dim)

    def forward(self, inputs: PictureInputs) -> Condition:
        """Classes of a batch."""
        label = torch.full_like(inputs.has_condition, self.num_classes, dtype=torch.long)
        if inputs.label is not None:
            label = torch.where(inputs.has_condition, inputs.label, label)
        if self.table is None:
            return Condition(label=label)
        vector = self.table(label)
        if self.is_sequence:
            return Condition(sequence=vector[:, None])
        return Condition(vector=vector)
