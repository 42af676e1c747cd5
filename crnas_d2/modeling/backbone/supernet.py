"""The two supernets (paper, Sec. 3.2 and Figure 2).

StageSupernet: each entry of the stage code has one separate chain of blocks for every depth of its
    space. A stage of a ResNet is one entry, number 0; MobileNetV2 has up to three in one stage.
    parameters: stem.*, res{i}.{entry}.{depth}.{block}.*
    with nested depths one chain of the largest depth, depth n being its first n blocks:
    parameters: stem.*, res{i}.{entry}.{block}.*
DilationSupernet: the stage code is fixed, every choice block has three 3x3 convolutions of rates 1,
    2, 3 with weights and norm of their own; all else is shared.
    parameters: stem.*, res{i}.{block}.conv2.{digit}.*, and the rest as in the fixed network
Both return what the fixed network of the same path returns: {"res2": (N, C, H/4, W/4), ...}.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from crnas_d2.architecture import DIGITS, Architecture
from crnas_d2.modeling.backbone.family import Family, Norm, make_chain
from crnas_d2.space import DilationSpace, StageSpace
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone


class ChoiceBlock(nn.ModuleList):
    """Three 3x3 convolutions, each with its norm, of rates 1, 2, 3; ``digit`` says which one runs.

    (N, C, H, W) to (N, C', H/stride, W/stride), the same for every digit.
    """

    digit = 0  # written by Segment alone

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self[self.digit](x)


@dataclass(frozen=True)
class Segment:
    """A piece of a path that is computed as a whole: the stem, a branch, or a block.

    Paths whose first segments have equal names compute the same up to there.

    Attributes:
        name: tells segments apart that compute differently.
        module: (N, C, H, W) to (N, C', H', W').
        prefix: the module's dotted name in the supernet.
        output: the stage that this segment completes, if any.
        choice: the module's choice block, if it has one, and the digit that this segment takes.
    """

    name: str
    module: nn.Module
    prefix: str
    output: str | None = None
    choice: ChoiceBlock | None = None
    digit: int = 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.choice is not None:
            self.choice.digit = self.digit
        return self.module(x)

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """(dotted name in the supernet, module) of everything that this segment runs through."""
        passed_by = {
            id(module)
            for digit, alternative in enumerate(self.choice or ())
            if digit != self.digit
            for module in alternative.modules()
        }
        for name, module in self.module.named_modules(prefix=self.prefix):
            if id(module) not in passed_by:
                yield name, module


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
        self._replayed: Mapping[str, torch.Tensor] | None = None

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
            self.check_path(architecture)
        self._path = architecture

    def check_path(self, architecture: Architecture) -> None:
        """
        Raises:
            ValueError: the architecture is partial or not in the space.
        """
        if architecture not in self.space or not architecture.is_complete:
            raise ValueError(f"path {architecture}: not a whole path of {self.space}")

    @contextmanager
    def using_path(self, architecture: Architecture) -> Iterator[None]:
        """Take this path inside the ``with`` block, and the one from before after it."""
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
        """Inside, forward returns these features of the path: they were computed before."""
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
        """The name that one of our state dict's keys has in the subnet; None: off the path."""
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
    """Separate chains (or one nested chain) for the depths of each entry of the stage code.

    Args:
        space: depths of each entry.
        widths: width of each entry; the paper halves those of ResNets, [32, 64, 128, 256] (A.1).
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
        self._family = family
        channels, scale = stem.out_channels, stem.stride
        for name in family.stages:
            self.add_module(name, nn.ModuleList())
        for (name, entry), width in zip(family.entries(), widths):
            depths = space.depths[entry.position]
            chains = {
                depth: make_chain(family, entry, channels, width, [0] * depth, norm)
                for depth in ([max(depths)] if nested else depths)
            }
            channels, scale = chains[max(depths)][-1].out_channels, scale * entry.stride
            branches = {str(depth): nn.Sequential(*chain) for depth, chain in chains.items()}
            deepest = branches[str(max(depths))]
            getattr(self, name).append(deepest if nested else nn.ModuleDict(branches))
            self._shapes[name] = ShapeSpec(channels=channels, stride=scale)

    def check_path(self, architecture: Architecture) -> None:
        super().check_path(architecture)
        if any(architecture.dilation_code):
            raise ValueError(f"path {architecture}: a stage supernet has rate 1 only")

    def _depths(self, name: str, architecture: Architecture) -> list[int]:
        """Depths of the entries of a stage."""
        return [architecture.stage_code[entry.position] for entry in self._family.stages[name]]

    def segments(self, architecture: Architecture) -> list[Segment]:
        found = [Segment("stem", self.stem, "stem")]
        for stage in self._shapes:
            for entry, depth in enumerate(self._depths(stage, architecture)):
                prefix = f"{stage}.{entry}"
                branches = getattr(self, stage)[entry]
                if self.nested:
                    names = [f"{prefix}.{block}" for block in range(depth)]
                    found += [Segment(name, branches[i], name) for i, name in enumerate(names)]
                else:
                    name = f"{prefix}.{depth}"
                    found.append(Segment(name, branches[str(depth)], name))
            last = found.pop()
            found.append(Segment(f"{last.name} > {stage}", last.module, last.prefix, stage))
        return found

    def subnet_key(self, key: str, architecture: Architecture) -> str | None:
        stage, *rest = key.split(".")
        if stage not in self._shapes:
            return key
        depths = self._depths(stage, architecture)
        entry = int(rest.pop(0))
        if not self.nested and int(rest.pop(0)) != depths[entry]:
            return None
        block = int(rest.pop(0))
        if block >= depths[entry]:
            return None
        return ".".join([stage, str(sum(depths[:entry]) + block), *rest])


class DilationSupernet(Supernet):
    """One stage code, three rates in every choice block.

    Args:
        space: the stage code.
        widths: width of each entry.
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
        self._family = family
        channels, scale = stem.out_channels, stem.stride
        for name in family.stages:
            self.add_module(name, nn.Sequential())
        for (name, entry), width in zip(family.entries(), widths):
            # The convolutions of the alternatives come out of whole chains, so that block function
            # and initialisation are the fixed network's own.
            depth = space.stage_code[entry.position]
            chains = [
                make_chain(family, entry, channels, width, [digit] * depth, norm) for digit in DIGITS
            ]
            for alternatives in zip(*chains):
                block = alternatives[0]
                if hasattr(block, family.choice):
                    convs = [getattr(alternative, family.choice) for alternative in alternatives]
                    setattr(block, family.choice, ChoiceBlock(convs))
                getattr(self, name).append(block)
            channels, scale = chains[0][-1].out_channels, scale * entry.stride
            self._shapes[name] = ShapeSpec(channels=channels, stride=scale)

    def choice_blocks(self) -> list[ChoiceBlock]:
        """In the order of the dilation code; blocks without a choice have none."""
        blocks = (block for name in self._shapes for block in getattr(self, name))
        found = (getattr(block, self._family.choice, None) for block in blocks)
        return [choice for choice in found if choice is not None]

    def segments(self, architecture: Architecture) -> list[Segment]:
        found = [Segment("stem", self.stem, "stem")]
        for stage, digits in self._family.digits(architecture).items():
            for number, (block, digit) in enumerate(zip(getattr(self, stage), digits)):
                name = f"{stage}.{number}"
                output = stage if number == len(digits) - 1 else None
                choice = getattr(block, self._family.choice, None)
                found.append(Segment(f"{name}: {digit}", block, name, output, choice, digit))
        return found

    def subnet_key(self, key: str, architecture: Architecture) -> str | None:
        parts = key.split(".")
        if parts[0] not in self._shapes or parts[2] != self._family.choice:
            return key
        stage, block, choice, digit, *rest = parts
        chosen = self._family.digits(architecture)[stage][int(block)]
        return ".".join([stage, block, choice, *rest]) if int(digit) == chosen else None


def find_supernet(model: nn.Module) -> Supernet | None:
    """The supernet inside a detector, or None if its backbone is a fixed network."""
    return next((m for m in model.modules() if isinstance(m, Supernet)), None)
