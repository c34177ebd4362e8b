"""TransformerLens, by its own patching functions: the HookedTransformer, and the TransformerBridge of the same release.

It returns means over the pairs. Its metric sees every pair, so the effects of each are kept as it is called, and their
means compared with what it returns: thus the whole table can be compared with other implementations'.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig, patching
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformers import AutoTokenizer

from benchmarks.cases import EMBEDDED, ROOT, Prompts


def hooked(model) -> HookedTransformer:
    """The weights in a HookedTransformer, as they are: not folded, not centred."""
    config = HookedTransformerConfig(
        n_layers=model.config.n_layer,
        d_model=model.config.n_embd,
        n_heads=model.config.n_head,
        d_head=model.config.n_embd // model.config.n_head,
        n_ctx=model.config.n_positions,
        d_vocab=model.config.vocab_size,
        act_fn="gelu_new",
        eps=model.config.layer_norm_epsilon,
        normalization_type="LN",
        original_architecture="GPT2LMHeadModel",
        init_weights=False,
        default_prepend_bos=False,
        device=str(model.device),
    )
    wrapped = HookedTransformer(config)
    # Not strict: attention masks are buffers here, and no weights.
    wrapped.load_state_dict(convert_gpt2_weights(model, config), strict=False)
    return wrapped.eval().requires_grad_(False)


def bridge(model) -> TransformerBridge:
    """The model behind TransformerLens's names; it asks for a tokenizer, and uses none where tokens are given."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / EMBEDDED, local_files_only=True)
    wrapped = TransformerBridge.boot_transformers("gpt2", hf_model=model, tokenizer=tokenizer, device=str(model.device))
    return wrapped.eval().requires_grad_(False)


def blocks(model, prompts: Prompts) -> Tensor:
    """Denoising effects of resid_pre, attn_out, mlp_out: `(3, layers, positions, pairs)`."""
    return _sweep(patching.get_act_patch_block_every, model, prompts)


def heads(model, prompts: Prompts) -> Tensor:
    """Denoising effects of head_out at all positions: `(layers, heads, pairs)`."""
    return _sweep(patching.get_act_patch_attn_head_out_all_pos, model, prompts)


@torch.no_grad()
def _sweep(patch: Callable, model, prompts: Prompts) -> Tensor:
    effects = []

    def metric(logits: Tensor) -> Tensor:
        effects.append(prompts.logit_difference(logits))
        return effects[-1].mean()

    _, cache = model.run_with_cache(prompts.clean)
    means = patch(model, prompts.corrupted, cache, metric)
    by_pair = torch.stack(effects).unflatten(0, means.shape)
    torch.testing.assert_close(by_pair.mean(-1), means)
    return by_pair
