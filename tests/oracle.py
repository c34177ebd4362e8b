"""The slow oracle: activation patching by plain forward hooks, one pair and one forward pass per patch.

It is kept literal on purpose: it has its own table of names, shares no code with the package, and knows nothing of
nnsight, of batches, of shared beginnings, or of patches that need no run. Metrics are written out from their
definitions in double precision.
"""

import math

import torch

# model type: embedding, blocks; from a block: attention, its output projection, MLP
GPT_NEOX = ("gpt_neox.embed_in", "gpt_neox.layers", "attention", "attention.dense", "mlp")
LLAMA = ("model.embed_tokens", "model.layers", "self_attn", "self_attn.o_proj", "mlp")
NAMES = {
    "gpt2": ("transformer.wte", "transformer.h", "attn", "attn.c_proj", "mlp"),
    "gpt_neox": GPT_NEOX,
    "gptj": ("transformer.wte", "transformer.h", "attn", "attn.out_proj", "mlp"),
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
}
COMPONENTS = ("embedding", "resid_pre", "head_out", "attn_out", "mlp_out", "resid_post")
ROLES = ("prefix", "subject_first", "subject_middle", "subject_last", "relation", "last")


def oracle_sweep(
    model, pairs, *, components, positions, direction, layers=None, window=1, value=None, noise=None, memory=None
):
    """Rows as dicts: pair, component, layer, position, role, head, metrics, and the last logits `(vocabulary,)`.

    Denoising puts the clean activation into the corrupted run, noising the corrupted one into the clean run. `value`
    is a function of the pair, the base prompt and the base run's noise that gives what is written instead, by
    (component, layer). `noise` by pair, `(positions, width)`, makes the corrupted run the clean prompt with that added
    to its embeddings. `memory` is a dictionary in which one model's and one value's runs are remembered between calls.
    """
    rows = []
    for pair in pairs:
        run = Runs(model, pair, direction, value, noise, {} if memory is None else memory)
        for line, sites in lines_of(model, pair, components, positions, layers, window):
            rows.append({"pair": pair.pair_id, **line, **run.patched(sites)})
    return rows


def lines_of(model, pair, components, positions, layers=None, window=1):
    """Every line of a sweep, component, layer, position, role and head, and the single sites that it patches."""
    count, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    if positions == "each":
        targets = [(token, role, [token]) for token, role in enumerate(pair.roles)]
    elif positions == "roles":
        targets = [(None, role, tokens_of(pair, role)) for role in ROLES if role in pair.roles]
    else:
        targets = [(None, "all", tokens_of(pair, "all"))]
    for component in components:
        for layer in [0] if component == "embedding" else layers or range(count):
            reach = [0] if component == "embedding" else rome_window(layer, window, count)
            for position, role, tokens in targets:
                for head in range(heads) if component == "head_out" else [None]:
                    sites = [(component, other, token, head) for other in reach for token in tokens]
                    line = {"component": component, "layer": layer, "position": position, "role": role, "head": head}
                    yield line, sites


@torch.no_grad()
def oracle_answers(model, pairs, *, components, positions, direction):
    """Rows as dicts: pair, component, layer, position, role, head, and the log-probability of the whole answer.

    The prompt is patched with what the other *prompt*, without any answer, holds; then the answer is read behind it, in
    one pass.
    """
    rows = []
    for pair in pairs:
        base, other = (pair.corrupted, pair.clean) if direction == "denoising" else (pair.clean, pair.corrupted)
        given = record(model, other)
        for line, sites in lines_of(model, pair, components, positions):
            said = answer_log_probability(model, base, pair.answer, given, sites)
            rows.append({"pair": pair.pair_id, **line, "answer_log_probability": said})
    return rows


@torch.no_grad()
def answer_log_probability(model, prompt, answer, given=None, sites=()):
    """Σ_j log P(a_j | prompt a_1 … a_{j−1}), in double precision, in one pass over prompt and answer."""
    logits = patched_run(model, (*prompt, *answer[:-1]), given, sites).double()
    total = 0.0
    for number, token in enumerate(answer):
        values = logits[len(prompt) - 1 + number].tolist()
        total += values[token] - math.log(sum(math.exp(v) for v in values))
    return total


def oracle_sets(model, pairs, sets, *, direction, value=None, noise=None):
    """Rows as dicts: pair, sites (a set's name), metrics, logits. A site is (component, layer, position, head)."""
    rows = []
    for pair in pairs:
        run = Runs(model, pair, direction, value, noise, {})
        for name, sites in sets.items():
            single = [
                (component, layer, token, head)
                for component, layer, position, head in sites
                for token in tokens_of(pair, position)
            ]
            rows.append({"pair": pair.pair_id, "sites": name, **run.patched(single)})
    return rows


def oracle_runs(model, pairs, *, noise=None):
    """Rows as dicts: pair, run, metrics, logits."""
    rows = []
    for pair in pairs:
        for name, direction in (("clean", "noising"), ("corrupted", "denoising")):
            rows.append(
                {"pair": pair.pair_id, "run": name, **Runs(model, pair, direction, None, noise, {}).patched([])}
            )
    return rows


def tokens_of(pair, position):
    """The tokens that a position stands for: itself, those of a role, or all."""
    if isinstance(position, int):
        return [position]
    return [token for token, role in enumerate(pair.roles) if position in ("all", role)]


def rome_window(layer, window, layer_count):
    """The layers patched together: max(0, l - w//2) up to, without, min(L, l - w//2 + w)."""
    return [other for other in range(layer - window // 2, layer - window // 2 + window) if 0 <= other < layer_count]


class Runs:
    """The base run of one pair in one direction, what is written into it, and the clean run it is compared with."""

    @torch.no_grad()
    def __init__(self, model, pair, direction, value, noise, memory):
        noised = None if noise is None else noise[pair.pair_id]
        clean, corrupted = (pair.clean, None), (pair.corrupted, None)
        if noise is not None:
            corrupted = (pair.clean, noised)
        base, other = (corrupted, clean) if direction == "denoising" else (clean, corrupted)
        self.model, self.pair, self.direction, self.memory = model, pair, direction, memory
        self.prompt, self.noise = base
        key = (pair.pair_id, direction)
        if key not in memory:
            given = record(model, *other) if value is None else value(pair, *base)
            memory[key] = given, patched_logits(model, pair.clean, {}, [])
        self.given, self.clean_logits = memory[key]

    @torch.no_grad()
    def patched(self, sites):
        key = (self.pair.pair_id, self.direction, frozenset(sites))
        if key not in self.memory:
            logits = patched_logits(self.model, self.prompt, self.given, sites, self.noise)
            metrics = oracle_metrics(logits, self.clean_logits, self.pair.right, self.pair.wrong)
            self.memory[key] = {"logits": logits, "metrics": metrics, "right": self.pair.right}
        return self.memory[key]


@torch.no_grad()
def record(model, prompt, noise=None):
    """Every site of a run, `(1, positions, width)` by (component, layer); with `noise` on the embeddings."""
    embedding, blocks = places(model)
    held = {}
    hooks = [*noise_hooks(embedding, noise), embedding.register_forward_hook(keep_output(held, ("embedding", 0)))]
    for layer, (block, attention, projection, mlp) in enumerate(blocks):
        hooks.append(block.register_forward_pre_hook(keep_input(held, ("resid_pre", layer))))
        hooks.append(projection.register_forward_pre_hook(keep_input(held, ("head_out", layer))))
        hooks.append(attention.register_forward_hook(keep_output(held, ("attn_out", layer))))
        hooks.append(mlp.register_forward_hook(keep_output(held, ("mlp_out", layer))))
        hooks.append(block.register_forward_hook(keep_output(held, ("resid_post", layer))))
    model(torch.tensor([prompt]))
    for hook in hooks:
        hook.remove()
    return held


def patched_logits(model, prompt, given, sites, noise=None):
    """Logits at the last position of a patched run, `(vocabulary,)`."""
    return patched_run(model, prompt, given, sites, noise)[-1]


def patched_run(model, prompt, given, sites, noise=None):
    """Logits of a run with the vectors at `sites` replaced by `given`'s, `(positions, vocabulary)`."""
    embedding, blocks = places(model)
    hooks = noise_hooks(embedding, noise)
    for component, layer, position, head in sites:
        replacement = given[component, layer]

        def replace(value, position=position, head=head, replacement=replacement):
            value = value.clone()
            width = value.shape[-1] if head is None else value.shape[-1] // model.config.num_attention_heads
            first = 0 if head is None else head * width
            value[0, position, first : first + width] = replacement[0, position, first : first + width]
            return value

        def replace_input(module, inputs, replace=replace):
            return (replace(inputs[0]), *inputs[1:])

        def replace_output(module, inputs, output, replace=replace):
            return (replace(output[0]), *output[1:]) if isinstance(output, tuple) else replace(output)

        block, attention, projection, mlp = blocks[layer]
        if component in ("resid_pre", "head_out"):
            module = {"resid_pre": block, "head_out": projection}[component]
            hooks.append(module.register_forward_pre_hook(replace_input))
        else:
            module = {"embedding": embedding, "attn_out": attention, "mlp_out": mlp, "resid_post": block}[component]
            hooks.append(module.register_forward_hook(replace_output))
    logits = model(torch.tensor([prompt]), use_cache=False).logits[0]
    for hook in hooks:
        hook.remove()
    return logits


def oracle_metrics(logits, clean_logits, right, wrong):
    """Every metric but rank, each as a sum over the vocabulary written out."""
    values, clean = logits.tolist(), clean_logits.tolist()
    total, clean_total = sum(math.exp(v) for v in values), sum(math.exp(v) for v in clean)
    divergence = 0.0
    for v, c in zip(values, clean, strict=True):
        p = math.exp(c) / clean_total
        divergence += p * (math.log(p) - (v - math.log(total)))
    return {
        "logit_difference": sum(values[token] for token in right) - sum(values[token] for token in wrong),
        "log_probability": math.log(sum(math.exp(values[token]) for token in right) / total),
        "probability": sum(math.exp(values[token]) for token in right) / total,
        "kl_divergence": divergence,
    }


def oracle_rank_bounds(logits, right, tolerance):
    """The ranks that rounding by `tolerance` allows: tokens surely above every right one, and those that may be."""
    best = max(logits[token] for token in right)
    others = [value for token, value in enumerate(logits) if token not in right]
    return sum(value > best + tolerance for value in others), sum(value > best - tolerance for value in others)


def places(model):
    """The embedding, and of every block itself, its attention, its output projection and its MLP."""
    embedding, blocks, *inner = NAMES[model.config.model_type]
    return model.get_submodule(embedding), [
        (block, *(block.get_submodule(path) for path in inner)) for block in model.get_submodule(blocks)
    ]


def noise_hooks(embedding, noise):
    if noise is None:
        return []
    return [embedding.register_forward_hook(lambda module, inputs, output: output + noise)]


def keep_input(held, key):
    def hook(module, inputs):
        held[key] = inputs[0].clone()

    return hook


def keep_output(held, key):
    def hook(module, inputs, output):
        held[key] = (output[0] if isinstance(output, tuple) else output).clone()

    return hook
