"""Published places: the study's protocol, asked of prompt pairs and read as a score of every place.

`helpers.published` has the protocol: the answer stands *inside* the prompt, the right one in the clean and a wrong one
in the corrupted prompt; a module's clean output is replayed at all positions; the metric is the mean logit of the right
answer's tokens minus that of the wrong one's, read after the answer. Of a pair this makes

    clean prompt      question + answer
    corrupted prompt  question + foil                                    the same question, for the answer alone differs

which is `published.Protocol(read="last word", spaced=True, own=True)`: a pair has no full stop after its answer, and
phrases of its own. Recovery is (patched − corrupted) / (clean − corrupted).

The study names modules, and a place is made by several (in GPT-2 c_attn and c_proj, or c_fc and c_proj). At all
positions each of them fixes what the last one writes, so that all have the same recovery, and it is the place's. The
study's own script finds `nn.Linear` modules only, which in GPT-2 is the unembedding: it is no place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch

from helpers.architectures import architecture_of
from helpers.methods import PER_PAIR, MethodError, Place, places_of
from helpers.pairs import PromptPair
from helpers.published import phrase_difference, record, replay
from helpers.tracing import Traced, traceable

UNEMBEDDING = "lm_head"  # of GPT-2, the one family that the study is about


def published_recoveries(model, pairs: Sequence[PromptPair]) -> pd.DataFrame:
    """What each place recovers by the study's protocol, in its mean-logit difference: PER_PAIR.

    Pairs whose answer and foil have not the same number of tokens are left out, where the study's script ends in a
    shape error. Raises MethodError when no pair is left.
    """
    asked = [pair for pair in pairs if len(pair.answer) == len(pair.foil)]
    if not asked:
        raise MethodError(
            f"Of {len(pairs)} pairs none has an answer and a foil with equally many tokens, and the published protocol "
            "puts both into one prompt: choose donors whose answers are as long."
        )
    row = architecture_of(model)
    inner = {"attn_out": row.head_projection, "mlp_out": row.mlp}
    modules = {f"{row.blocks}.{place.layer}.{inner[place.component]}": place for place in places_of(model)}
    with traceable(model) as traced:
        tables = [_recoveries(traced, pair, modules) for pair in asked]
    return pd.concat(tables, ignore_index=True)


def _recoveries(traced: Traced, pair: PromptPair, modules: Mapping[str, Place]) -> pd.DataFrame:
    """`published_recoveries` of one pair; `modules` are those that write the places, by name, in forward order."""
    clean, corrupted = (torch.tensor([pair.clean + end], device=traced.device) for end in (pair.answer, pair.foil))
    scored, at = (list(pair.answer), list(pair.foil)), [clean.shape[1] - 1]
    names = dict.fromkeys([*modules, UNEMBEDDING], "")
    clean_run, corrupted_run = (record(traced.network, tokens, names, at) for tokens in (clean, corrupted))
    patched = replay(traced.network, corrupted, {name: clean_run[name] for name in modules}, at)
    ends = [phrase_difference(run[UNEMBEDDING][0, 0], scored).item() for run in (clean_run, corrupted_run)]
    columns = {
        "component": [place.component for place in modules.values()],
        "layer": [place.layer for place in modules.values()],
        "numerator": phrase_difference(patched[:, 0], scored).double().cpu() - ends[1],
    }
    return pd.DataFrame(columns).assign(pair=pair.pair_id, denominator=ends[0] - ends[1])[PER_PAIR]
