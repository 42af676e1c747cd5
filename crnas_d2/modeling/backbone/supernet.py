"""The two supernets of the paper (Sec. 3.2 and Figure 2), and one that is both.

StageSupernet: each chain of a stage has a separate branch for every depth of its space. Parameters:
    stem.*, res{i}.{chain}.{depth}.{block}.*; shared, depth n is the first n blocks of one branch,
    stem.*, res{i}.{chain}.{block}.*
DilationSupernet: the stage code is fixed; each choice block has 3x3 convolutions of rates 1, 2, 3, each
    with its norm. Parameters: stem.*, res{i}.{block}.conv2.{digit}.*, the rest as in the fixed network;
    shared, the three convolutions have one weight.
JointSupernet: shared depths of blocks with shared rates: res{i}.{chain}.{block}.conv2.{digit}.*
All return what the fixed network of the same path returns: {"res2": (N, C, H/4, W/4), ...}.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from crnas_d2.architecture import DIGITS, Architecture
from crnas_d2.modeling.backbone.family import Family, Norm, make_chain
from crnas_d2.space import DilationSpace, JointSpace, Space, StageSpace
from detectron2.layers import CNNBlockBase
from detectron2.modeling import Backbone

MakeChain = Callable[[Sequence[int]], list[CNNBlockBase]]  # make_chain, given the digits


class ChoiceBlock(nn.ModuleList):
    """3x3 convolutions of rates 1, 2, 3, each with its norm; ``digit`` says which one runs."""

    digit = 0  # set by Segment alone

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self[self.digit](x)


@dataclass(frozen=True)
class Segment:
    """A piece of a path that is computed as a whole: the stem, a branch, or a block."""

    prefix: str  # the module's dotted name in the supernet
    module: nn.Module  # (N, C, H, W) to (N, C', H', W')
    choice: ChoiceBlock | None = None  # the module's choice block, if it has one
    digit: int = 0  # which alternative of the choice block runs
    output: str | None = None  # the stage that this segment completes, if any

    @property
    def name(self) -> str:
        """Paths whose first segments have equal names compute the same up to there."""
        return f"{self.prefix}: {self.digit} > {self.output}"

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.choice is not None:
            self.choice.digit = self.digit
        return self.module(x)

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """(dotted name in the supernet, module) of everything that this segment runs through."""
        others = [conv for digit, conv in enumerate(self.choice or ()) if digit != self.digit]
        skipped = {module for conv in others for module in conv.modules()}
        for name, module in self.module.named_modules(prefix=self.prefix):
            if module not in skipped:
                yield name, module


class Supernet(Backbone):
    """A backbone that forwards along its current path, the one piece of mutable search state."""

    def __init__(
        self,
        family: Family,
        space: Space,
        *,
        in_channels: int,
        widths: Sequence[int],  # of the stem and of each chain
        norm: Norm,
        out_features: Sequence[str],
        shared: bool = False,
    ) -> None:
        super().__init__()
        self.space, self.shared = space, shared
        self._family = family
        self._out_features = list(out_features)
        self._out_feature_channels: dict[str, int] = {}
        self._out_feature_strides: dict[str, int] = {}
        self._path: Architecture | None = None
        self._known: Mapping[str, torch.Tensor] | None = None
        self.stem = family.stem(in_channels, widths[0], norm)
        for stage in family.stages:
            self.add_module(stage, nn.ModuleList())
        channels, scale = self.stem.out_channels, self.stem.stride
        for (stage, chain), width in zip(family.chains(), widths[1:]):
            make = functools.partial(make_chain, family, chain, channels, width, norm)
            channels = self._add_chain(getattr(self, stage), chain.position, make)
            scale *= chain.stride
            self._out_feature_channels[stage] = channels
            self._out_feature_strides[stage] = scale

    def _add_chain(self, stage: nn.ModuleList, position: int, make: MakeChain) -> int:
        """Append a chain and its alternatives to a stage; returns the channels of its output."""
        raise NotImplementedError

    @property
    def path(self) -> Architecture:
        """The current path; a RuntimeError if none is set."""
        if self._path is None:
            raise RuntimeError("no path is set: call the supernet's set_path or enter using_path first")
        return self._path

    def set_path(self, architecture: Architecture | None) -> None:
        """Select the path that forward takes, or None; a ValueError if partial or of another space."""
        if architecture and not (architecture in self.space and architecture.is_complete):
            raise ValueError(f"path {architecture}: not a whole path of {self.space}")
        self._path = architecture

    @contextmanager
    def using_path(
        self, architecture: Architecture, features: Mapping[str, torch.Tensor] | None = None
    ) -> Iterator[None]:
        """Take this path in the ``with`` block; ``features`` are what forward returns, if known."""
        before = self._path, self._known
        self.set_path(architecture)
        self._known = features
        try:
            yield
        finally:
            self._path, self._known = before

    def segments(self, architecture: Architecture) -> list[Segment]:
        """The path from the images to the last stage."""
        found = [Segment("stem", self.stem)]
        for stage in self._family.stages:
            found += self._stage_segments(stage, architecture)
            found[-1] = replace(found[-1], output=stage)
        return found

    def _stage_segments(self, stage: str, architecture: Architecture) -> list[Segment]:
        raise NotImplementedError

    def subnet_keys(self, architecture: Architecture) -> dict[str, str]:
        """Names of a path's weights and buffers here, and in the fixed network of that architecture."""
        keys, numbers = {}, Counter[str]()  # blocks of each stage so far
        for segment in self.segments(architecture):
            on_path = dict(segment.modules())
            for name, block in on_path.items():
                if not isinstance(block, CNNBlockBase):
                    continue
                stage = name.partition(".")[0]
                there = stage if name == stage else f"{stage}.{numbers[stage]}"
                numbers[stage] += 1
                for key in block.state_dict():
                    if f"{name}.{key}".rpartition(".")[0] in on_path:
                        alone = re.sub(rf"^({self._family.choice})\.\d\.", r"\1.", key)
                        keys[f"{name}.{key}"] = f"{there}.{alone}"
        return keys

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images (N, C, H, W) to features by stage name, along the path."""
        if self._known is not None:
            return {name: self._known[name] for name in self._out_features}
        outputs = {}
        for segment in self.segments(self.path):
            x = segment(x)
            if segment.output in self._out_features:
                outputs[segment.output] = x
        return outputs

    def _choice_blocks(self, depth: int, make: MakeChain) -> list[CNNBlockBase]:
        """A chain of ``depth`` blocks, each with a choice block of all rates."""
        # The convolutions of the alternatives come out of whole chains, so that block function and
        # initialisation are the fixed network's own.
        choice, blocks = self._family.choice, []
        for alternatives in zip(*(make([digit] * depth) for digit in DIGITS)):
            blocks.append(alternatives[0])
            if hasattr(blocks[-1], choice):
                convs = [getattr(block, choice) for block in alternatives]
                setattr(blocks[-1], choice, ChoiceBlock(convs))
                for conv in convs if self.shared else ():
                    conv.weight = convs[0].weight
        return blocks

    def _choice_segments(self, prefix: str, blocks: Any, digits: Sequence[int]) -> list[Segment]:
        """The first blocks of a chain, as many as there are digits."""
        choice = self._family.choice
        return [
            Segment(f"{prefix}.{number}", block, getattr(block, choice, None), digit)
            for number, (block, digit) in enumerate(zip(blocks, digits))
        ]


class StageSupernet(Supernet):
    """Branches for the depths of each chain: separate ones, or shared."""

    space: StageSpace

    def _add_chain(self, stage: nn.ModuleList, position: int, make: MakeChain) -> int:
        depths = self.space.depths[position]
        made = [max(depths)] if self.shared else depths
        branches = {str(depth): nn.Sequential(*make([0] * depth)) for depth in made}
        *_, branch = branches.values()
        stage.append(branch if self.shared else nn.ModuleDict(branches))
        return branch[-1].out_channels

    def _stage_segments(self, stage: str, architecture: Architecture) -> list[Segment]:
        names: list[str] = []
        for number, chain in enumerate(self._family.stages[stage]):
            depth = architecture.stage_code[chain.position]
            branches = range(depth) if self.shared else [depth]
            names += [f"{stage}.{number}.{branch}" for branch in branches]
        return [Segment(name, self.get_submodule(name)) for name in names]


class DilationSupernet(Supernet):
    """One stage code, three rates in every choice block."""

    space: DilationSpace

    def _add_chain(self, stage: nn.ModuleList, position: int, make: MakeChain) -> int:
        stage.extend(self._choice_blocks(self.space.stage_code[position], make))
        return stage[-1].out_channels

    def _stage_segments(self, stage: str, architecture: Architecture) -> list[Segment]:
        groups = architecture.digits_by_stage()
        digits = [digit for chain in self._family.stages[stage] for digit in groups[chain.position]]
        return self._choice_segments(stage, getattr(self, stage), digits)


class JointSupernet(Supernet):
    """Every stage code with every dilation code: one training for both searches."""

    space: JointSpace

    def _add_chain(self, stage: nn.ModuleList, position: int, make: MakeChain) -> int:
        stage.append(nn.Sequential(*self._choice_blocks(max(self.space.depths[position]), make)))
        return stage[-1][-1].out_channels

    def _stage_segments(self, stage: str, architecture: Architecture) -> list[Segment]:
        groups, found = architecture.digits_by_stage(), []
        for number, chain in enumerate(self._family.stages[stage]):
            blocks, digits = getattr(self, stage)[number], groups[chain.position]
            found += self._choice_segments(f"{stage}.{number}", blocks, digits)
        return found


def find_supernet(model: nn.Module) -> Supernet | None:
    """The supernet inside a detector, or None if its backbone is a fixed network."""
    return next((m for m in model.modules() if isinstance(m, Supernet)), None)


def subnet_state(
    model: nn.Module, state: Mapping[str, Any], architecture: Architecture
) -> dict[str, Any]:
    """A detector's state dict with an architecture's fixed network for its supernet.

    ``model``: the detector, of which only names are taken.
    """
    prefix, supernet = next((n, m) for n, m in model.named_modules() if isinstance(m, Supernet))
    found = {key: value for key, value in state.items() if not key.startswith(f"{prefix}.")}
    for here, there in supernet.subnet_keys(architecture).items():
        found[f"{prefix}.{there}"] = state[f"{prefix}.{here}"]
    return found
