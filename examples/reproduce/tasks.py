"""Prompts in pairs that differ in what decides the answer: indirect objects, facts, and repeated sequences.

A task is a list of `Prompt`: token ids, as many of another prompt whose answer is another one, and two tokens, whose
difference of logits is the quantity: the right answer minus a wrong one. Texts are kept where names and answers are
tokens of the model; a model for which that holds of too few has sequences alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NAMES = (
    "Mary John Tom James Anna Paul Mark Peter Sarah David Laura Kate Robert Michael Susan Alice Emma Jack Adam Ben "
    "Daniel Simon Jane Henry George Lisa Martin Frank Rachel Richard"
)

PLACES = ("store", "garden", "park", "school", "office", "station")

THINGS = ("drink", "book", "ring", "letter", "ball", "key")

TEMPLATES = (
    "When {a} and {b} went to the {place}, {c} gave a {thing} to",
    "After {a} and {b} met at the {place}, {c} handed the {thing} to",
    "Then, {a} and {b} walked to the {place}. {c} showed a {thing} to",
    "While {a} and {b} were at the {place}, {c} offered the {thing} to",
)

CAPITALS = (
    "France:Paris Germany:Berlin Italy:Rome Spain:Madrid Portugal:Lisbon England:London Ireland:Dublin Austria:Vienna "
    "Greece:Athens Poland:Warsaw Russia:Moscow Sweden:Stockholm Norway:Oslo Denmark:Copenhagen Finland:Helsinki "
    "Japan:Tokyo China:Beijing India:Delhi Egypt:Cairo Turkey:Ankara Iran:Tehran Iraq:Baghdad Cuba:Havana Peru:Lima "
    "Chile:Santiago Canada:Ottawa Kenya:Nairobi Ghana:Accra Syria:Damascus Lebanon:Beirut Hungary:Budapest "
    "Ukraine:Kiev Belgium:Brussels Thailand:Bangkok Vietnam:Hanoi Indonesia:Jakarta Pakistan:Islamabad "
    "Afghanistan:Kabul Nepal:Kathmandu Venezuela:Caracas Argentina:Buenos Romania:Bucharest Bulgaria:Sofia "
    "Serbia:Belgrade Croatia:Zagreb Scotland:Edinburgh Wales:Cardiff Taiwan:Taipei Jordan:Amman Morocco:Rabat "
    "Algeria:Algiers Libya:Tripoli Tunisia:Tunis Ethiopia:Addis Uganda:Kampala Philippines:Manila Malaysia:Kuala "
    "Bangladesh:Dhaka Colombia:Bogota Ecuador:Quito Qatar:Doha Latvia:Riga Iceland:Reykjavik Switzerland:Bern"
)


@dataclass(frozen=True)
class Prompt:
    """A prompt and its counterpart, of one length."""

    ids: Tensor
    """[1, position]"""
    other: Tensor
    answer: int
    wrong: int


def tasks(tokenizer: Any, indirect: int, facts: int, induction: int, seed: int) -> dict[str, list[Prompt]]:
    """Prompts by task; tasks for which the tokenizer has no words are left out."""
    generator = random.Random(seed)
    found = {
        "indirect object": list(_indirect(tokenizer, indirect, generator)),
        "facts": list(_facts(tokenizer, facts)),
        "induction": list(_induction(tokenizer, induction, generator)),
    }
    return {name: prompts for name, prompts in found.items() if prompts}


def _encoded(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _indirect(tokenizer: Any, number: int, generator: random.Random) -> Iterator[Prompt]:
    """The name that is said once; its counterpart has three names, of which none is said twice."""
    names = [name for name in NAMES.split() if len(_encoded(tokenizer, f" {name}")) == 1]
    if len(names) < 6:
        return
    for at in range(number):
        one, two, *others = generator.sample(names, 5)
        filled = {"place": generator.choice(PLACES), "thing": generator.choice(THINGS)}
        first, second = (one, two) if at % 2 else (two, one)
        text = TEMPLATES[at // 2 % len(TEMPLATES)]
        ids, other = (
            torch.tensor([_encoded(tokenizer, text.format(a=a, b=b, c=c, **filled))])
            for a, b, c in ((first, second, two), others)
        )
        if ids.shape == other.shape:
            answer, wrong = (_encoded(tokenizer, f" {name}")[0] for name in (one, two))
            yield Prompt(ids, other, answer, wrong)


def _facts(tokenizer: Any, number: int) -> Iterator[Prompt]:
    """The capital of a country; its counterpart is the next country of as many tokens."""
    known = [tuple(pair.split(":")) for pair in CAPITALS.split()]
    if len(_encoded(tokenizer, " the capital of")) > 4:
        return
    rows = [
        (_encoded(tokenizer, f"The capital of {country} is the city of"), _encoded(tokenizer, f" {capital}")[0])
        for country, capital in known
    ]
    for at, (ids, answer) in enumerate(rows[:number]):
        same = [row for row in rows[at + 1 :] + rows[:at] if len(row[0]) == len(ids) and row[1] != answer]
        if same:
            yield Prompt(torch.tensor([ids]), torch.tensor([same[0][0]]), answer, same[0][1])


def _induction(tokenizer: Any, number: int, generator: random.Random) -> Iterator[Prompt]:
    """Eight words and the first four again; its counterpart goes on otherwise the first time."""
    texts = ((index, tokenizer.decode([index])) for index in range(min(len(tokenizer), 20_000)))
    words = [index for index, text in texts if text.startswith(" ") and text[1:].isalpha() and len(text) > 3]
    for _ in range(number):
        *eight, wrong = generator.sample(words, 9)
        twin = [*eight[:4], wrong, *eight[5:]]
        ids, other = (torch.tensor([[*row, *eight[:4]]]) for row in (eight, twin))
        yield Prompt(ids, other, eight[4], wrong)
