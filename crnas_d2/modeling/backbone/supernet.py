"""The two supernets (paper, Sec. 3.2 and Figure 2).

StageSupernet: each chain of a stage has a separate branch for every depth of its space. A stage of a
    ResNet is one chain, number 0; MobileNetV2 has up to three in one stage.
    parameters: stem.*, res{i}.{chain}.{depth}.{block}.*
    with nested depths one branch of the largest depth, depth n being its first n blocks:
    parameters: stem.*, res{i}.{chain}.{block}.*
DilationSupernet: the stage code is fixed, every choice block has three 3x3 convolutions of rates 1,
    2, 3 with weights and norm of their own; all else is shared.
    parameters: stem.*, res{i}.{block}.conv2.{digit}.*, and the rest as in the fixed network
Both return what the fixed network of the same path returns: {"res2": (N, C, H/4, W/4), ...}.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from crnas_d2.architecture import DIGITS, Architecture
from crnas_d2.modeling.backbone.family import Family, Norm, make_chain
from crnas_d2.space import DilationSpace, Space, StageSpace
from detectron2.layers import CNNBlockBase, ShapeSpec
from detectron2.modeling import Backbone

MakeChain = Callable[[Sequence[int]], list[CNNBlockBase]]  # make_chain, given the digits


class ChoiceBlock(nn.ModuleList):
    """3x3 convolutions of rates 1, 2, 3, each with its norm; ``digit`` says which one runs.

    (N, C, H, W) to (N, C', H/stride, W/stride), the same for every digit.
    """

    digit = 0  # set by Segment alone

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self[self.digit](x)


@dataclass(frozen=True)
class Segment:
    """A piece of a path that is computed as a whole: the stem, a branch, or a block.

    Paths whose first segments have equal names compute the same up to there.

    Attributes:
        name: differs between segments that compute differently.
        prefix: the module's dotted name in the supernet.
        module: (N, C, H, W) to (N, C', H', W').
        output: the stage that this segment completes, if any.
        choice: the module's choice block, if it has one.
        digit: which alternative of ``choice`` runs.
    """

    name: str
    prefix: str
    module: nn.Module
    output: str | None = None
    choice: ChoiceBlock | None = None
    digit: int = 0

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
    """A backbone that forwards along its current path, the one piece of mutable search state.

    Args:
        space: of the paths.
        widths: the paper halves those of ResNets, [32, 64, 128, 256] (A.1).
        others: as ``build_network`` takes them.
    """

    def __init__(
        self,
        family: Family,
        space: Space,
        *,
        in_channels: int,
        stem_channels: int,
        widths: Sequence[int],
        norm: Norm,
        out_features: Sequence[str],
    ) -> None:
        super().__init__()
        self.space = space
        self._family = family
        self._out_features = list(out_features)
        self._path: Architecture | None = None
        self._replayed: Mapping[str, torch.Tensor] | None = None
        self.stem = family.stem(in_channels, stem_channels, norm)
        for stage in family.stages:
            self.add_module(stage, nn.ModuleList())
        self._shapes: dict[str, ShapeSpec] = {}
        channels, scale = self.stem.out_channels, self.stem.stride
        for (stage, chain), width in zip(family.chains(), widths):
            make = functools.partial(make_chain, family, chain, channels, width, norm)
            channels = self._add_chain(getattr(self, stage), chain.position, make)
            scale *= chain.stride
            self._shapes[stage] = ShapeSpec(channels=channels, stride=scale)

    def _add_chain(self, stage: nn.ModuleList, position: int, make: MakeChain) -> int:
        """Append a chain and its alternatives to a stage; returns the channels of its output."""
        raise NotImplementedError

    @property
    def path(self) -> Architecture:
        """The current path; a RuntimeError if none is set."""
        if self._path is None:
            raise RuntimeError(
                f"{type(self).__name__}: no path is set; call set_path or enter using_path first"
            )
        return self._path

    def set_path(self, architecture: Architecture | None) -> None:
        """Select the path that forward takes, as ``check_path`` allows; None: no path."""
        if architecture is not None:
            self.check_path(architecture)
        self._path = architecture

    def check_path(self, architecture: Architecture) -> None:
        """Raise a ValueError if the architecture is partial or not in the space."""
        if architecture not in self.space or not architecture.is_complete:
            raise ValueError(f"path {architecture}: not a whole path of {self.space}")

    @contextmanager
    def using_path(self, architecture: Architecture) -> Iterator[None]:
        """Take this path inside the ``with`` block, and the previous one after it."""
        before = self._path
        self.set_path(architecture)
        try:
            yield
        finally:
            self.set_path(before)

    @contextmanager
    def replaying(
        self, architecture: Architecture, features: Mapping[str, torch.Tensor]
    ) -> Iterator[None]:
        """Inside the ``with`` block forward returns these features, computed before for this path."""
        self._replayed = {name: features[name] for name in self._out_features}
        try:
            with self.using_path(architecture):
                yield
        finally:
            self._replayed = None

    def segments(self, architecture: Architecture) -> list[Segment]:
        """The path from the images to the last stage, in pieces."""
        raise NotImplementedError

    def subnet_key(self, key: str, architecture: Architecture) -> str | None:
        """The subnet's name for a key of the supernet's state dict; None: off the path."""
        raise NotImplementedError

    def subnet_state_dict(self, architecture: Architecture) -> dict[str, torch.Tensor]:
        """The path's weights and buffers under the names of the fixed network of that path."""
        named = {self.subnet_key(key, architecture): v for key, v in self.state_dict().items()}
        return {key: value for key, value in named.items() if key is not None}

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images (N, C, H, W) to features by stage name, along the path."""
        if self._replayed is not None:
            return dict(self._replayed)
        outputs = {}
        for segment in self.segments(self.path):
            x = segment(x)
            if segment.output in self._out_features:
                outputs[segment.output] = x
        return outputs

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and strides of the returned stages; the same for every path."""
        return {name: self._shapes[name] for name in self._out_features}


class StageSupernet(Supernet):
    """Separate branches for the depths of each chain.

    Args:
        nested: depth n is the first n blocks of one branch, so that depths share their weights.
        others: as ``Supernet`` takes them.
    """

    space: StageSpace

    def __init__(
        self, family: Family, space: StageSpace, *, nested: bool = False, **others: Any
    ) -> None:
        self.nested = nested  # before the branches are made
        super().__init__(family, space, **others)

    def _add_chain(self, stage: nn.ModuleList, position: int, make: MakeChain) -> int:
        depths = self.space.depths[position]
        made = [max(depths)] if self.nested else depths
        branches = {str(depth): nn.Sequential(*make([0] * depth)) for depth in made}
        *_, branch = branches.values()
        stage.append(branch if self.nested else nn.ModuleDict(branches))
        return branch[-1].out_channels

    def check_path(self, architecture: Architecture) -> None:
        super().check_path(architecture)
        if any(architecture.dilation_code):
            raise ValueError(f"path {architecture}: a stage supernet has rate 1 only")

    def _depths(self, stage: str, architecture: Architecture) -> list[int]:
        return [architecture.stage_code[chain.position] for chain in self._family.stages[stage]]

    def segments(self, architecture: Architecture) -> list[Segment]:
        found = [Segment("stem", "stem", self.stem)]
        for stage in self._family.stages:
            names = []
            for number, depth in enumerate(self._depths(stage, architecture)):
                parts = range(depth) if self.nested else [depth]
                names += [f"{stage}.{number}.{part}" for part in parts]
            found += [Segment(name, name, self.get_submodule(name)) for name in names[:-1]]
            last = names[-1]
            found.append(Segment(f"{last} > {stage}", last, self.get_submodule(last), stage))
        return found

    def subnet_key(self, key: str, architecture: Architecture) -> str | None:
        stage, *rest = key.split(".")
        if stage not in self._family.stages:
            return key
        depths = self._depths(stage, architecture)
        number = int(rest.pop(0))
        if not self.nested and int(rest.pop(0)) != depths[number]:
            return None
        block = int(rest.pop(0))
        if block >= depths[number]:
            return None
        return ".".join([stage, str(sum(depths[:number]) + block), *rest])


class DilationSupernet(Supernet):
    """One stage code, three rates in every choice block; takes the arguments of ``Supernet``."""

    space: DilationSpace

    def _add_chain(self, stage: nn.ModuleList, position: int, make: MakeChain) -> int:
        # The convolutions of the alternatives come out of whole chains, so that block function and
        # initialisation are the fixed network's own.
        choice, depth = self._family.choice, self.space.stage_code[position]
        chains = [make([digit] * depth) for digit in DIGITS]
        for alternatives in zip(*chains):
            block = alternatives[0]
            if hasattr(block, choice):
                setattr(block, choice, ChoiceBlock(getattr(a, choice) for a in alternatives))
            stage.append(block)
        return stage[-1].out_channels

    def segments(self, architecture: Architecture) -> list[Segment]:
        found = [Segment("stem", "stem", self.stem)]
        for stage, digits in self._family.digits(architecture).items():
            for number, (block, digit) in enumerate(zip(getattr(self, stage), digits)):
                name = f"{stage}.{number}"
                output = stage if number == len(digits) - 1 else None
                choice = getattr(block, self._family.choice, None)
                found.append(Segment(f"{name}: {digit}", name, block, output, choice, digit))
        return found

    def subnet_key(self, key: str, architecture: Architecture) -> str | None:
        parts = key.split(".")
        if parts[0] not in self._family.stages or parts[2] != self._family.choice:
            return key
        stage, block, choice, digit, *rest = parts
        chosen = self._family.digits(architecture)[stage][int(block)]
        return ".".join([stage, block, choice, *rest]) if int(digit) == chosen else None


def find_supernet(model: nn.Module) -> Supernet | None:
    """The supernet inside a detector, or None if its backbone is a fixed network."""
    return next((m for m in model.modules() if isinstance(m, Supernet)), None)
