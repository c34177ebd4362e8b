"""Architectures: what a patchable site is called in each family of models.

A site is one of six tensors, listed here in the order in which a forward pass makes them; all but the first exist once
per block:

    embedding   the token embeddings, before any position is added  (rows, positions, width)
    resid_pre   the residual stream that enters the block           (rows, positions, width)
    head_out    the heads' outputs before the output projection     (rows, positions, heads × head width)
    attn_out    what attention adds to the stream                   (rows, positions, width)
    mlp_out     what the MLP adds to the stream                     (rows, positions, width)
    resid_post  the residual stream that leaves the block           (rows, positions, width)

A new family is one more row of `ARCHITECTURES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

# Order matters: nnsight lets a trace read sites only in the order of the forward pass.
SITES = ("embedding", "resid_pre", "head_out", "attn_out", "mlp_out", "resid_post")


ATTENTION = "helpers.attention"


class ArchitectureError(ValueError):
    """A model whose sites are not known, or are not what the table says."""


@dataclass(frozen=True)
class Architecture:
    """Names of the modules that hold the sites of one family.

    `embedding`, `blocks` and `final_norm` are paths from the model; `attention`, `mlp_norm` and `mlp` are paths from a
    block, and `output_projection` is a path from its attention: the (query) heads are equal slices of that
    projection's *input*, also where they share keys and values. With `own_attention` it is no choice of
    transformers' attention interface, so that nothing can be put in its place. With `parallel_residual` every model of
    the family lets the MLP of a block read what its attention reads; elsewhere the configuration may.
    """

    model_type: str
    embedding: str
    blocks: str
    attention: str
    output_projection: str
    mlp_norm: str
    mlp: str
    final_norm: str
    own_attention: bool = False
    parallel_residual: bool = False

    @property
    def head_projection(self) -> str:
        """The path of the output projection from a block."""
        return f"{self.attention}.{self.output_projection}"


def _llama_like(model_type: str) -> Architecture:
    return Architecture(
        model_type=model_type,
        embedding="model.embed_tokens",
        blocks="model.layers",
        attention="self_attn",
        output_projection="o_proj",
        mlp_norm="post_attention_layernorm",
        mlp="mlp",
        final_norm="model.norm",
    )


ARCHITECTURES = MappingProxyType(
    {
        row.model_type: row
        for row in (
            Architecture(
                model_type="gpt2",
                embedding="transformer.wte",
                blocks="transformer.h",
                attention="attn",
                output_projection="c_proj",
                mlp_norm="ln_2",
                mlp="mlp",
                final_norm="transformer.ln_f",
            ),
            Architecture(
                model_type="gpt_neox",
                embedding="gpt_neox.embed_in",
                blocks="gpt_neox.layers",
                attention="attention",
                output_projection="dense",
                mlp_norm="post_attention_layernorm",
                mlp="mlp",
                final_norm="gpt_neox.final_layer_norm",
            ),
            Architecture(
                model_type="gptj",
                embedding="transformer.wte",
                blocks="transformer.h",
                attention="attn",
                output_projection="out_proj",
                mlp_norm="ln_1",
                mlp="mlp",
                final_norm="transformer.ln_f",
                own_attention=True,
                parallel_residual=True,
            ),
            *map(_llama_like, ("llama", "mistral", "qwen2", "qwen3")),
        )
    }
)


def architecture_of(model: nn.Module) -> Architecture:
    """The row of the table for a Hugging Face causal language model.

    Raises ArchitectureError when its model type has no row, or when it lacks a module that the row names.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type not in ARCHITECTURES:
        raise ArchitectureError(
            f"Patching knows the model types {', '.join(ARCHITECTURES)}, not {model_type!r} ({type(model).__name__}): "
            "load a model of a known type, or add a row to helpers.architectures.ARCHITECTURES."
        )
    row = ARCHITECTURES[model_type]
    block = f"{row.blocks}.0"
    attention = f"{block}.{row.attention}"
    inner = (attention, f"{attention}.{row.output_projection}", f"{block}.{row.mlp_norm}", f"{block}.{row.mlp}")
    for path in (row.embedding, *inner, row.final_norm):
        try:
            model.get_submodule(path)
        except AttributeError:
            raise ArchitectureError(
                f"{type(model).__name__} has no module {path!r}: load the model with its language-modelling head "
                "(AutoModelForCausalLM), with at least one block."
            ) from None
    return row


def layer_count(model: nn.Module) -> int:
    """Number of blocks."""
    return len(model.get_submodule(architecture_of(model).blocks))


def head_count(model: nn.Module) -> int:
    """Number of attention (query) heads of a block."""
    return model.config.num_attention_heads


def has_parallel_residual(model: nn.Module) -> bool:
    """Whether the MLP of a block reads what its attention reads, and so not what attention wrote (GPT-NeoX, GPT-J)."""
    return architecture_of(model).parallel_residual or bool(getattr(model.config, "use_parallel_residual", False))


@contextmanager
def attention(model: nn.Module, function: Callable) -> Iterator[None]:
    """Let `function` compute every attention of `model`; the implementation that was set comes back afterwards.

    It stands in the attention interface of transformers, and is given no mask. Raises ArchitectureError for a family
    that computes its attention itself.
    """
    row = ARCHITECTURES.get(model.config.model_type)
    if row and row.own_attention:
        raise ArchitectureError(
            f"{type(model).__name__} computes its attention itself, so no other can be put in its place: do without "
            "the softmax correction (helpers.attribution) and without packed texts (helpers.packing)."
        )
    before = model.config._attn_implementation
    ALL_ATTENTION_FUNCTIONS[ATTENTION] = function
    model.config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        model.config._attn_implementation = before
        del ALL_ATTENTION_FUNCTIONS[ATTENTION]
