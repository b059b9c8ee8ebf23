"""The built-in tasks: seeded, well formed, and held-out combinations that the train split never holds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from discovery.demo import CLAIMED_TASKS, model_directory
from discovery.task import BadTask, PromptPair
from discovery.tasks import greater_than, ioi
from discovery.tasks.country_capital import TEMPLATES as CAPITAL_TEMPLATES
from discovery.tasks.gendered_pronoun import ROLES
from discovery.tasks.generator import SPLITS, BadTaskOption, Split
from discovery.tasks.people import NAMES, PRONOUN
from discovery.tasks.places import CITIES, COUNTRIES, COUNTRY_OF
from discovery.tasks.subject_verb_agreement import ATTRACTORS, SUBJECTS
from discovery.tasks.table import GENERATORS, generate_pairs
from discovery.tokenisation import tokenise, tokenise_rows

VARIANTS = [
    (name, {option: value})
    for name, generator in GENERATORS.items()
    for option, values in generator.variants.items()
    for value in values
] + [(name, {}) for name in GENERATORS]
SPLIT_VARIANTS = [(name, split, variant) for name, variant in VARIANTS for split in SPLITS]


def words(text: str) -> list[str]:
    for mark in ",.:?()=+":
        text = text.replace(mark, " ")
    return text.split()


def names_in(text: str) -> frozenset[str]:
    return frozenset(words(text)) & frozenset(NAMES)


@pytest.mark.parametrize(("name", "split", "variant"), SPLIT_VARIANTS)
def test_pairs_are_well_formed(name: str, split: Split, variant: dict[str, str]) -> None:
    pairs = generate_pairs(name, 40, 3, split, **variant)
    assert len(set(pairs)) == 40
    for pair in pairs:
        assert pair.clean != pair.corrupt
        assert pair.answers
        assert pair.wrong_answers
        assert not set(pair.answers) & set(pair.wrong_answers)
        assert not set(pair.answers) & set(GENERATORS[name].corrupt_answers(pair)) or name in ("greater-than", "ioi")
        for text in (pair.clean, pair.corrupt):
            assert text == text.strip()
            assert "{" not in text
        for answer in (*pair.answers, *pair.wrong_answers):
            assert answer.strip()
            assert answer.startswith(" ") or name == "greater-than"
        assert len(pair.clean.split()) == len(pair.corrupt.split())


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_the_seed_decides_everything(name: str, variant: dict[str, str]) -> None:
    once, again, other = (generate_pairs(name, 30, seed, "train", **variant) for seed in (7, 7, 8))
    assert once == again
    assert once != other
    assert once[:10] == generate_pairs(name, 10, 7, "train", **variant)


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_no_prompt_is_in_both_splits(name: str, variant: dict[str, str]) -> None:
    train, held_out = (generate_pairs(name, 40, 0, split, **variant) for split in SPLITS)
    assert not {pair.clean for pair in train} & {pair.clean for pair in held_out}


def _names(pair: PromptPair) -> object:
    return names_in(pair.clean)


def _start_year(pair: PromptPair) -> object:
    return words(pair.clean)[6]


def _name_and_role(pair: PromptPair) -> object:
    return names_in(pair.clean), frozenset(words(pair.clean)) & frozenset(ROLES)


def _nouns(pair: PromptPair) -> object:
    found = frozenset(words(pair.clean))
    return tuple(next(noun for noun, plural in table if {noun, plural} & found) for table in (SUBJECTS, ATTRACTORS))


def _country_and_wording(pair: PromptPair) -> object:
    country = next(c.name for c in COUNTRIES if c.name in words(pair.clean))
    template = pair.clean.replace(country, "{country}")
    assert template in CAPITAL_TEMPLATES
    return country, template


def _city(pair: PromptPair) -> object:
    return next(city for city in CITIES if city in words(pair.clean))


def _succession(pair: PromptPair) -> object:
    return words(pair.clean)[-1], pair.answers[0]


def _parameters(pair: PromptPair) -> object:
    return tuple(words(pair.clean)[6:8])


def _operands(pair: PromptPair) -> object:
    return tuple(word for word in words(pair.clean) if word.isdigit())


def _thing_and_color(pair: PromptPair) -> object:
    found = words(pair.clean)
    return found[2], found[4]


def _clean(pair: PromptPair) -> object:
    return pair.clean


COMBINATION: dict[str, Callable[[PromptPair], object]] = {
    "ioi": _names,
    "greater-than": _start_year,
    "gendered-pronoun": _name_and_role,
    "subject-verb-agreement": _nouns,
    "country-capital": _country_and_wording,
    "two-hop": _city,
    "induction": _succession,
    "docstring": _parameters,
    "hypernymy": _clean,
    "arithmetic": _operands,
    "multiple-choice": _thing_and_color,
}


@pytest.mark.parametrize("name", GENERATORS)
def test_held_out_combinations_are_not_in_train(name: str) -> None:
    train, held_out = ({COMBINATION[name](pair) for pair in generate_pairs(name, 250, 1, split)} for split in SPLITS)
    assert len(train) > 10
    assert len(held_out) > 10
    assert not train & held_out


def test_every_train_text_keeps_held_out_names_apart() -> None:
    """The corrupt prompts too: no two names of a train prompt, of whatever counterfactual, are a held-out pair."""
    held_out = {names_in(pair.clean) for pair in generate_pairs("ioi", 400, 0, "held-out")}
    for counterfactual in ioi.COUNTERFACTUALS:
        for pair in generate_pairs("ioi", 200, 0, "train", counterfactual=counterfactual):
            assert not any(
                pair_of_names <= names_in(text) for text in (pair.clean, pair.corrupt) for pair_of_names in held_out
            )


def test_ioi_answers_and_counterfactuals() -> None:
    for counterfactual in ioi.COUNTERFACTUALS:
        for pair in generate_pairs("ioi", 50, 0, "held-out", counterfactual=counterfactual):
            clean, corrupt = ([w for w in words(text) if w in NAMES] for text in (pair.clean, pair.corrupt))
            (answer,), (wrong,) = pair.answers, pair.wrong_answers
            assert len(clean) == len(corrupt) == 3
            assert clean.count(answer.strip()) == 1
            assert clean[2] == wrong.strip()
            if counterfactual == "s2_io_flip":
                assert (corrupt[:2], corrupt[2]) == (clean[:2], answer.strip())
            elif counterfactual == "abc":
                assert corrupt[:2] == clean[:2]
                assert len(set(corrupt)) == 3
            else:
                assert not set(clean) & set(corrupt)
            assert set(ioi.corrupt_answers(pair)) == {f" {name}" for name in corrupt[:2] if name != corrupt[2]}


@pytest.mark.parametrize(("order", "place"), [("ABBA", 0), ("BABA", 1)])
def test_ioi_orders(order: str, place: int) -> None:
    for pair in generate_pairs("ioi", 40, 0, "train", order=order):
        assert [w for w in words(pair.clean) if w in NAMES][place] == pair.answers[0].strip()


def test_greater_than_answers_are_the_later_years() -> None:
    for pair in generate_pairs("greater-than", 50, 0, "held-out"):
        start, end = words(pair.clean)[6], words(pair.clean)[-1]
        assert start.startswith(end)
        assert min(pair.answers) == f"{int(start[2:]) + 1:02d}"
        assert sorted(pair.answers + pair.wrong_answers) == [f"{year:02d}" for year in range(100)]
        assert greater_than.corrupt_answers(pair)[0] == "02"


def test_pronoun_pairs_differ_in_the_name_alone() -> None:
    for pair in generate_pairs("gendered-pronoun", 50, 0, "train"):
        changed = [(a, b) for a, b in zip(words(pair.clean), words(pair.corrupt), strict=True) if a != b]
        assert len(changed) == 1
        assert (f" {PRONOUN[changed[0][0]]}", f" {PRONOUN[changed[0][1]]}") == (pair.answers[0], pair.wrong_answers[0])


def test_agreement_pairs_differ_in_the_subjects_number_alone() -> None:
    for pair in generate_pairs("subject-verb-agreement", 50, 0, "train"):
        changed = [(a, b) for a, b in zip(words(pair.clean), words(pair.corrupt), strict=True) if a != b]
        assert len(changed) == 1
        plural = pair.answers[0] == " are"
        assert (
            changed[0] == (changed[0][1] + "s", changed[0][0].removesuffix("s"))
            if plural
            else (changed[0][1] == changed[0][0] + "s")
        )


def test_two_hop_answers_follow_from_the_country() -> None:
    for pair in generate_pairs("two-hop", 50, 0, "held-out"):
        for text, answer in ((pair.clean, pair.answers[0]), (pair.corrupt, pair.wrong_answers[0])):
            city = next(word for word in words(text) if word in COUNTRY_OF)
            assert answer == f" {COUNTRY_OF[city].capital}"


def test_every_country_has_train_cities_whose_capital_is_asked_for() -> None:
    """Two hops can only be learnt where some city of the country is in the train split."""
    train = {_city(pair) for pair in generate_pairs("two-hop", 2000, 0, "train")}
    assert all(train & set(country.cities) for country in COUNTRIES)


def test_the_facts_are_unambiguous() -> None:
    capitals = [country.capital for country in COUNTRIES]
    assert len(set(capitals)) == len(capitals) == len({country.name for country in COUNTRIES})
    assert len(CITIES) == sum(len(country.cities) for country in COUNTRIES)
    assert not set(CITIES) & {*capitals, *NAMES, *(country.name for country in COUNTRIES)}


def test_induction_answer_came_after_the_query() -> None:
    for counterfactual in GENERATORS["induction"].variants["counterfactual"]:
        for pair in generate_pairs("induction", 50, 0, "held-out", counterfactual=counterfactual):
            for text, answer in ((pair.clean, pair.answers[0]), (pair.corrupt, pair.wrong_answers[0])):
                *listed, query = words(text)[1:]
                assert listed.count(query) == 1
                assert f" {listed[listed.index(query) + 1]}" == answer


@pytest.mark.parametrize("name", CLAIMED_TASKS)
@pytest.mark.parametrize("split", SPLITS)
def test_claimed_tasks_align_under_the_embedded_tokenizer(name: str, split: Split) -> None:
    """Equal token counts, answers of one token that follow the prompt's own tokens, and no unknown words."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_directory(), local_files_only=True)
    for pair in generate_pairs(name, 100, 5, split):
        clean, corrupt = (tokenizer(text)["input_ids"] for text in (pair.clean, pair.corrupt))
        assert len(clean) == len(corrupt)
        assert tokenizer.unk_token_id not in clean + corrupt
        for answer in (*pair.answers, *pair.wrong_answers):
            *prompt, token = tokenizer(pair.clean + answer)["input_ids"]
            assert prompt == clean
            assert token != tokenizer.unk_token_id


@pytest.mark.parametrize("name", sorted(set(GENERATORS) - set(CLAIMED_TASKS)))
def test_the_embedded_model_refuses_the_other_tasks_in_words(name: str) -> None:
    """Their answers would all be the same `<unk>`, and what is measured of that means nothing."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_directory(), local_files_only=True)
    pairs = generate_pairs(name, 40, 5, "train")
    with pytest.raises(BadTask, match=r"row \d+: .* does not know the answer '.*': choose a task"):
        tokenise(pairs, tokenizer)
    tokenised, failed = tokenise_rows(pairs, tokenizer)
    assert len(failed) > 20
    assert all(tokenizer.unk_token_id not in answer for pair in tokenised for answer in (*pair.right, *pair.wrong))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("ioy", 1, 0, "train", {}), "'ioy'"),
        (("ioi", 1, 0, "train", {"colour": "red"}), "'colour'"),
        (("ioi", 1, 0, "train", {"counterfactual": "s3"}), "'s3'"),
        (("ioi", 0, 0, "train", {}), "0 pairs"),
        (("subject-verb-agreement", 100_000, 0, "train", {"structure": "simple"}), "different pairs"),
    ],
)
def test_errors_name_the_culprit(arguments: tuple[str, int, int, Split, dict[str, str]], named: str) -> None:
    name, count, seed, split, variant = arguments
    with pytest.raises(BadTaskOption, match=named) as caught:
        generate_pairs(name, count, seed, split, **variant)
    assert "\n" not in str(caught.value)


def test_the_table_is_cheap_to_import() -> None:
    program = "import sys; from discovery.tasks.table import GENERATORS; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
