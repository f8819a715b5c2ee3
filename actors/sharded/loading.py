"""A rank's part of a model, read from the checkpoint into DeepSpeed's layers without the whole ever in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import ConfigDict
from torch import nn

from errata.actors.settings import ModelSpec
from errata.actors.sharded.layout import Plan, plan_for
from errata.actors.sharded.model import ShardedEditableModel
from errata.actors.sharded.rank import Group
from errata.editing.checkpoint.load import DTYPES, checkpoint_digest, read_model_config, resolve_model
from errata.editing.checkpoint.slices import CheckpointSlices
from errata.editing.errors import ErrataError, UserError


class PartSpec(ModelSpec):
    """A model of which this process holds one rank's part."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    group: Group


def load_spec(spec: ModelSpec) -> ShardedEditableModel:
    """This process's part of a model with ``parallel`` set."""
    if not isinstance(spec, PartSpec):
        raise ErrataError("a model with model.parallel is loaded by the ranks of a group, not by one process")
    return load_part(spec, spec.group)


def load_part(spec: ModelSpec, group: Group) -> ShardedEditableModel:
    """This rank's part of a model, with the interface of the whole; every rank of the group must call it.

    Raises:
        UserError: the model is not there, cannot be divided, or is not kept as safetensors.
    """
    from transformers import AutoTokenizer

    directory = resolve_model(spec.name)
    config = read_model_config(directory, spec.name)
    if spec.dtype not in DTYPES:
        raise UserError(f"model.dtype {spec.dtype!r} is not known; allowed: {', '.join(DTYPES)}")
    plan = plan_for(config, group.size, spec.name)
    model = part_of_checkpoint(directory, config, plan, group, DTYPES[spec.dtype])
    tokenizer: Any = AutoTokenizer.from_pretrained(directory)
    known = spec.digest or (checkpoint_digest(directory) if group.rank == 0 else None)
    group.meet("loading")
    digest = spec.digest or group.send_object(known, 0)
    return ShardedEditableModel(model, tokenizer, name=spec.name, digest=digest, group=group, plan=plan)


def part_of_checkpoint(directory: Path, config: Any, plan: Plan, group: Group, dtype: torch.dtype) -> nn.Module:
    """The library's model with this rank's slices as its parameters; nothing else of the checkpoint is read."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    attention = "eager" if config.model_type == "gemma2" else "sdpa"
    # buffers are real: what a model computes at its making (rotary frequencies) is in no checkpoint
    with init_empty_weights(include_buffers=False):
        model: Any = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    divide(model, plan, config)
    checkpoint = CheckpointSlices(directory)
    tied = bool(config.tie_word_embeddings)
    for name, shape in shapes.items():
        if tied and name == "lm_head.weight":
            continue  # the embedding's, as soon as that is there
        cut = plan.cut(name, shape, group.rank)
        tensor = checkpoint.read(name, cut, dtype=dtype, device=group.device)
        owner, _, attribute = name.rpartition(".")
        module = model.get_submodule(owner)
        want = tuple(getattr(module, attribute).shape)
        if tuple(tensor.shape) != want:
            raise ErrataError(f"part of {name!r} has shape {tuple(tensor.shape)}, DeepSpeed's layer wants {want}")
        setattr(module, attribute, nn.Parameter(tensor, requires_grad=False))
    model.tie_weights()
    empty = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if empty:
        raise ErrataError(f"parameters without weights after loading: {', '.join(empty)}")
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(group.device)
    return model.eval()


def divide(model: nn.Module, plan: Plan, config: Any) -> None:
    """Put DeepSpeed's tensor-parallel layers in the place of the plan's linear layers; weights may be on ``meta``."""
    from deepspeed.module_inject.layers import LinearAllreduce, LinearLayer
    from deepspeed.module_inject.tp_shard import AutoTPMeta

    heads = AutoTPMeta.from_model_config(config)
    world: Any = dist.group.WORLD
    for name, split in plan.splits.items():
        owner, _, attribute = name.rpartition(".")
        parent, linear = model.get_submodule(owner), model.get_submodule(name)
        made: nn.Module = (
            LinearAllreduce(linear, world, name=name, tp_meta=heads)
            if split == "row"
            else LinearLayer(linear, world, name=name, tp_meta=heads, gather_output=split == "head")
        )
        setattr(parent, attribute, made)
