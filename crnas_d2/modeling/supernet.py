"""The two supernets (paper, Sec. 3.2 and Figure 2).

StageSupernet: each stage holds one separate chain of blocks for every depth of its space.
    parameters: stem.*, res{i}.{depth}.{block}.*
    with nested depths one chain of the largest depth, depth n being its first n blocks:
    parameters: stem.*, res{i}.{block}.*
DilationSupernet: the stage code is fixed, every choice block has three 3x3 convolutions of rates 1,
    2, 3 with weights and norm of their own; all else is shared.
    parameters: stem.*, res{i}.{block}.conv2.{digit}.*, and the rest as in the fixed network
Both return what the fixed network of the same path returns: {"res2": (N, C, H/4, W/4), ...}.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from crnas_d2.architecture import DIGITS, Architecture
from crnas_d2.modeling.family import STAGE_STRIDES, Family, Norm, make_chain
from crnas_d2.space import DilationSpace, StageSpace
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone


class Supernet(Backbone):
    """A backbone that forwards along its current path, the one piece of mutable search state.

    Args:
        space: what its paths are.
        stem: as in the fixed network.
        out_features: names of the stages to return, of ``res2`` .. ``res5``.
    """

    def __init__(
        self, space: StageSpace | DilationSpace, stem: nn.Module, out_features: Sequence[str]
    ) -> None:
        super().__init__()
        self.space = space
        self.stem = stem
        self._out_features = list(out_features)
        self._shapes: dict[str, ShapeSpec] = {}
        self._path: Architecture | None = None

    @property
    def path(self) -> Architecture:
        """The current path.

        Raises:
            RuntimeError: no path is set.
        """
        if self._path is None:
            raise RuntimeError(
                f"{type(self).__name__}: no path is set; call set_path or enter using_path first"
            )
        return self._path

    def set_path(self, architecture: Architecture | None) -> None:
        """Select the path that forward takes; None: no path.

        Raises:
            ValueError: the architecture is partial or not in the space.
        """
        if architecture is not None:
            if architecture not in self.space or not architecture.is_complete:
                raise ValueError(f"path {architecture}: not a whole path of {self.space}")
            self._select(architecture)
        self._path = architecture

    @contextmanager
    def using_path(self, architecture: Architecture) -> Iterator[None]:
        """Take this path inside the ``with`` block, and the one from before after it."""
        before = self._path
        self.set_path(architecture)
        try:
            yield
        finally:
            self.set_path(before)

    def _select(self, architecture: Architecture) -> None:
        raise NotImplementedError

    def _stage(self, name: str, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def subnet_key(self, key: str, architecture: Architecture) -> str | None:
        """The name that one of our state dict's keys has in the subnet; None: off the path."""
        raise NotImplementedError

    def subnet_state_dict(self, architecture: Architecture) -> dict[str, torch.Tensor]:
        """The path's weights and buffers under the names of the fixed network of that path."""
        named = {self.subnet_key(key, architecture): v for key, v in self.state_dict().items()}
        return {key: value for key, value in named.items() if key is not None}

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images (N, C, H, W) to features by stage name, along the path."""
        self.path  # noqa: B018  (an unset path is an error even where no stage would notice)
        x = self.stem(x)
        outputs = {}
        for name in self._shapes:
            x = self._stage(name, x)
            if name in self._out_features:
                outputs[name] = x
        return outputs

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and strides of the returned stages; the same for every path."""
        return {name: self._shapes[name] for name in self._out_features}


class StageSupernet(Supernet):
    """Separate chains (or one nested chain) for the depths of each stage.

    Args:
        space: depths of each stage.
        widths: width of each stage; the paper halves them, [32, 64, 128, 256] (A.1).
        nested: depth n is the first n blocks of one chain; weights are shared between depths.
    """

    def __init__(
        self,
        family: Family,
        space: StageSpace,
        *,
        in_channels: int,
        stem_channels: int,
        widths: Sequence[int],
        norm: Norm,
        out_features: Sequence[str],
        nested: bool = False,
    ) -> None:
        stem = family.stem(in_channels, stem_channels, norm)
        super().__init__(space, stem, out_features)
        self.nested = nested
        channels, scale = stem.out_channels, stem.stride
        for i, (depths, width, stride) in enumerate(zip(space.depths, widths, STAGE_STRIDES)):
            name = f"res{i + 2}"
            chains = {
                depth: make_chain(family, channels, width, stride, [0] * depth, norm)
                for depth in ([max(depths)] if nested else depths)
            }
            channels, scale = chains[max(depths)][-1].out_channels, scale * stride
            if nested:
                stage: nn.Module = nn.Sequential(*chains[max(depths)])
            else:
                stage = nn.ModuleDict(
                    {str(depth): nn.Sequential(*chain) for depth, chain in chains.items()}
                )
            self.add_module(name, stage)
            self._shapes[name] = ShapeSpec(channels=channels, stride=scale)

    def _select(self, architecture: Architecture) -> None:
        if any(architecture.dilation_code):
            raise ValueError(f"path {architecture}: a stage supernet has rate 1 only")

    def _depth(self, name: str, architecture: Architecture) -> int:
        return architecture.stage_code[int(name[len("res") :]) - 2]

    def _stage(self, name: str, x: torch.Tensor) -> torch.Tensor:
        stage, depth = getattr(self, name), self._depth(name, self.path)
        if not self.nested:
            return stage[str(depth)](x)
        for block in stage[:depth]:
            x = block(x)
        return x

    def subnet_key(self, key: str, architecture: Architecture) -> str | None:
        stage, number, rest = key.split(".", 2)
        if stage not in self._shapes:
            return key
        depth = self._depth(stage, architecture)
        if self.nested:
            return key if int(number) < depth else None
        return f"{stage}.{rest}" if int(number) == depth else None


class ChoiceBlock(nn.ModuleList):
    """Three 3x3 convolutions, each with its norm, of rates 1, 2, 3; ``digit`` says which one runs.

    (N, C, H, W) to (N, C', H/stride, W/stride), the same for every digit.
    """

    digit = 0  # written by DilationSupernet.set_path alone

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self[self.digit](x)


class DilationSupernet(Supernet):
    """One stage code, three rates in every choice block.

    Args:
        space: the stage code.
        widths: width of each stage.
    """

    def __init__(
        self,
        family: Family,
        space: DilationSpace,
        *,
        in_channels: int,
        stem_channels: int,
        widths: Sequence[int],
        norm: Norm,
        out_features: Sequence[str],
    ) -> None:
        stem = family.stem(in_channels, stem_channels, norm)
        super().__init__(space, stem, out_features)
        channels, scale = stem.out_channels, stem.stride
        stages = zip(space.stage_code, widths, STAGE_STRIDES)
        for i, (depth, width, stride) in enumerate(stages):
            # The convolutions of the alternatives come out of whole chains, so that block function
            # and initialisation are the fixed network's own.
            chains = [
                make_chain(family, channels, width, stride, [digit] * depth, norm) for digit in DIGITS
            ]
            for alternatives in zip(*chains):
                convs = [getattr(block, family.choice) for block in alternatives]
                setattr(alternatives[0], family.choice, ChoiceBlock(convs))
            channels, scale = chains[0][-1].out_channels, scale * stride
            self.add_module(f"res{i + 2}", nn.Sequential(*chains[0]))
            self._shapes[f"res{i + 2}"] = ShapeSpec(channels=channels, stride=scale)
        self._choice = family.choice

    def choice_blocks(self) -> list[ChoiceBlock]:
        """In the order of the dilation code."""
        return [getattr(block, self._choice) for name in self._shapes for block in getattr(self, name)]

    def _select(self, architecture: Architecture) -> None:
        for choice, digit in zip(self.choice_blocks(), architecture.dilation_code):
            choice.digit = digit

    def _stage(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return getattr(self, name)(x)

    def subnet_key(self, key: str, architecture: Architecture) -> str | None:
        parts = key.split(".")
        if parts[0] not in self._shapes or parts[2] != self._choice:
            return key
        stage, block, choice, digit, *rest = parts
        chosen = architecture.digits_by_stage()[int(stage[len("res") :]) - 2][int(block)]
        return ".".join([stage, block, choice, *rest]) if int(digit) == chosen else None


def find_supernet(model: nn.Module) -> Supernet | None:
    """The supernet inside a detector, or None if its backbone is a fixed network."""
    return next((m for m in model.modules() if isinstance(m, Supernet)), None)
