"""The slow oracle: activation patching of a GPT-2 by plain forward hooks, one pair and one forward pass per patch.

It is kept literal on purpose, shares no code with helpers.patching, and knows nothing of nnsight, of batches, or of
patches that need no run. Metrics are written out from their definitions in double precision.
"""

import math

import torch

COMPONENTS = ("resid_pre", "head_out", "attn_out", "mlp_out", "resid_post")


@torch.no_grad()
def oracle_sweep(model, pairs, *, components, positions, direction, layers=None, window=1, source_model=None):
    """Rows as dicts: pair, component, layer, position, head, and the last logits and clean_logits, `(vocabulary,)`.

    Denoising puts the clean activation into the corrupted run, noising the corrupted one into the clean run; with
    `source_model` the activation is that model's on the base prompt.
    """
    rows = []
    for pair in pairs:
        base, source = (pair.corrupted, pair.clean) if direction == "denoising" else (pair.clean, pair.corrupted)
        if source_model is None:
            given = record(model, source)
        else:
            given = record(source_model, base)
        clean_logits = model(torch.tensor([pair.clean])).logits[0, -1]
        for component in components:
            for layer in layers or range(model.config.n_layer):
                for position in range(len(base)) if positions == "each" else (None,):
                    for head in range(model.config.n_head) if component == "head_out" else (None,):
                        reach = rome_window(layer, window, model.config.n_layer)
                        logits = patched_logits(model, base, given, component, reach, position, head)
                        row = {"pair": pair.pair_id, "component": component, "layer": layer, "position": position}
                        rows.append({**row, "head": head, "logits": logits, "clean_logits": clean_logits})
    return rows


def rome_window(layer, window, layer_count):
    """The layers patched together: max(0, l - w//2) up to, without, min(L, l - w//2 + w)."""
    return [other for other in range(layer - window // 2, layer - window // 2 + window) if 0 <= other < layer_count]


def record(model, prompt):
    """Every site of a run, `(1, positions, width)` by (component, layer)."""
    held, hooks = {}, []
    for layer, block in enumerate(model.transformer.h):
        hooks.append(block.register_forward_pre_hook(keep_input(held, ("resid_pre", layer))))
        hooks.append(block.attn.c_proj.register_forward_pre_hook(keep_input(held, ("head_out", layer))))
        hooks.append(block.attn.register_forward_hook(keep_output(held, ("attn_out", layer))))
        hooks.append(block.mlp.register_forward_hook(keep_output(held, ("mlp_out", layer))))
        hooks.append(block.register_forward_hook(keep_output(held, ("resid_post", layer))))
    model(torch.tensor([prompt]))
    for hook in hooks:
        hook.remove()
    return held


def patched_logits(model, base, given, component, layers, position, head):
    """Logits at the last position, `(vocabulary,)`, of the base run with one component replaced in all of `layers`."""
    hooks = []
    for layer in layers:
        block = model.transformer.h[layer]
        replacement = given[component, layer]

        def replace(value, replacement=replacement):
            value = value.clone()
            where = slice(None) if position is None else position
            if head is None:
                value[0, where] = replacement[0, where]
            else:
                width = model.config.n_embd // model.config.n_head
                part = slice(head * width, (head + 1) * width)
                value[0, where, part] = replacement[0, where, part]
            return value

        def replace_input(module, inputs, replace=replace):
            return (replace(inputs[0]), *inputs[1:])

        def replace_output(module, inputs, output, replace=replace):
            return (replace(output[0]), *output[1:]) if isinstance(output, tuple) else replace(output)

        if component == "resid_pre":
            hooks.append(block.register_forward_pre_hook(replace_input))
        elif component == "head_out":
            hooks.append(block.attn.c_proj.register_forward_pre_hook(replace_input))
        else:
            module = {"attn_out": block.attn, "mlp_out": block.mlp, "resid_post": block}[component]
            hooks.append(module.register_forward_hook(replace_output))
    logits = model(torch.tensor([base])).logits[0, -1]
    for hook in hooks:
        hook.remove()
    return logits


def oracle_metrics(logits, clean_logits, answer, foil):
    """Every metric but rank, each as a sum over the vocabulary written out."""
    values = [float(v) for v in logits]
    clean = [float(v) for v in clean_logits]
    total, clean_total = sum(math.exp(v) for v in values), sum(math.exp(v) for v in clean)
    divergence = 0.0
    for v, c in zip(values, clean, strict=True):
        p = math.exp(c) / clean_total
        divergence += p * (math.log(p) - (v - math.log(total)))
    return {
        "logit_difference": values[answer] - values[foil],
        "log_probability": values[answer] - math.log(total),
        "probability": math.exp(values[answer]) / total,
        "kl_divergence": divergence,
    }


def oracle_rank_bounds(logits, answer, tolerance):
    """The ranks that rounding by `tolerance` allows: tokens surely above the answer, and those that may be."""
    return int((logits > logits[answer] + tolerance).sum()), int((logits > logits[answer] - tolerance).sum()) - 1


def keep_input(held, key):
    def hook(module, inputs):
        held[key] = inputs[0].clone()

    return hook


def keep_output(held, key):
    def hook(module, inputs, output):
        held[key] = (output[0] if isinstance(output, tuple) else output).clone()

    return hook
