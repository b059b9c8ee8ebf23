"""The last phase of training the embedded model: the country of a city is made to be what the first MLP writes there.

Interchange intervention training (Geiger et al. 2022, "Inducing causal structure for interpretable neural networks"): the
model reads a sentence about one city, the first MLP's output at the city is taken from the same sentence about another
city, and what is to be predicted is the other sentence. Without it the country stands in the city's own embedding, no MLP
works it out, and no feature of a transcoder could be the step between city and capital.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from discovery.demo.corpus import CITY_SENTENCES
from discovery.tasks import two_hop
from discovery.tasks.places import CITIES, COUNTRY_OF

SHARE_OF_FACTS = 0.3
"""How many of the sentences name the country itself; the others ask for something that is true of it."""


def city_pair(rng: random.Random) -> tuple[str, str]:
    """One sentence about two cities; only combinations that the training text may hold."""
    if rng.random() < SHARE_OF_FACTS:
        template = rng.choice(CITY_SENTENCES)
        one, other = rng.sample(CITIES, 2)
        return (
            template.format(city=one, country=COUNTRY_OF[one].name),
            template.format(city=other, country=COUNTRY_OF[other].name),
        )
    pair = two_hop.draw(rng, "train", "mixed", rng.choice((*two_hop.RELATIONS, "capital")))
    return f"{pair.clean}{pair.answers[0]}.", f"{pair.corrupt}{pair.wrong_answers[0]}."


def city_pairs(seed: int, count: int) -> Iterator[list[tuple[str, str]]]:
    """Endless batches of pairs."""
    rng = random.Random(f"interchange:{seed}")
    while True:
        yield [city_pair(rng) for _ in range(count)]


def interchange_loss(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]
) -> Float[Tensor, ""]:
    """Mean cross-entropy, after the city, of each pair's second sentence given its first with the first MLP's output at the
    city from the second. Gradients flow through both runs."""
    both = _padded(tokenizer, [text for text, _ in pairs] + [text for _, text in pairs])
    first, second = both.chunk(2)
    city = (first != second).int().argmax(1)  # the sentences are alike up to the city
    rows = torch.arange(len(pairs))

    def exchange(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
        mine, others = out.chunk(2)
        return torch.cat([mine.index_put((rows, city), others[rows, city]), others])

    handle = cast(LlamaDecoderLayer, model.model.layers[0]).mlp.register_forward_hook(exchange)
    try:
        logits = model(both, use_cache=False).logits.chunk(2)[0][:, :-1]
    finally:
        handle.remove()
    wanted = second[:, 1:]
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), wanted, reduction="none")
    pad = model.config.pad_token_id
    counted = (torch.arange(wanted.shape[1]) >= city[:, None]) & (wanted != pad)
    return losses[counted].mean()


def _padded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Int[Tensor, "row pos"]:
    """Token ids, padded on the right, where causal attention does not look."""
    rows = [torch.tensor(ids) for ids in tokenizer(list(texts))["input_ids"]]
    pad: Any = tokenizer.pad_token_id
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0 if pad is None else pad)
