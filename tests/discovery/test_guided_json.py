"""JSON by schema: always valid whatever the model says, and whatever is valid can be said."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable, Sequence
from typing import Any

import jsonschema
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from discovery.chat_format import encode_inside
from discovery.demo import model_directory
from discovery.guided_json import write_json
from discovery.json_form import Number
from discovery.json_number import can_begin, completed, is_whole
from discovery.json_pen import STRING_TOKENS, Vocabulary
from discovery.json_schema import BadSchema, any_object, compile_schema
from discovery.json_string import CLOSED, START, finished, walk
from discovery.token_bytes import TokenBytes, token_bytes

_MERGES = [
    b'",', b'"}', b'": "', b"abc", b" ab", b'a"', b'\\"', b"\\u", b"\\ud8", b"12", b"1.", b"-1", b".5,", b"10, ", b"\xf0\x9f",
    b'\x98\x80"', b"ab\xc3", b'", "', b'{"', b'{"a"', b"true,", b"null}", b"],", b" 7", b"\n", b" " * 40,
]  # fmt: skip
DEFINITIONS = {
    "list": {"type": "array", "items": {"anyOf": [{"$ref": "#/$defs/list"}, {"type": "integer"}]}},
    "chain": {
        "type": "object",
        "properties": {"v": {"type": "string"}, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/chain"}]}},
        "required": ["v", "next"],
        "additionalProperties": False,
    },
}


def byte_vocabulary() -> Vocabulary:
    """Every byte is a token, and so are some awkward strings; one token ends replies."""
    texts: list[bytes | None] = [*(bytes([i]) for i in range(256)), *_MERGES, None]
    spellings: dict[bytes, tuple[int, ...]] = {}
    for i, text in enumerate(texts):
        if text is not None:
            spellings[text] = (*spellings.get(text, ()), i)
    return Vocabulary.of(TokenBytes(tuple(texts), spellings), [len(texts) - 1], lambda text: list(text.encode()))


def word_vocabulary() -> Vocabulary:
    """The embedded model's: 790 words, and no quotes, braces or letters."""
    tokenizer = AutoTokenizer.from_pretrained(model_directory())
    return Vocabulary.of(token_bytes(tokenizer, len(tokenizer)), [2], lambda text: encode_inside(text, tokenizer))


class RandomVoice:
    """Says anything that is allowed."""

    def __init__(self, rng: random.Random, left: int) -> None:
        self.rng = rng
        self.left = left

    @property
    def spent(self) -> bool:
        return self.left <= 0

    def append(self, ids: Iterable[int]) -> None:
        self.left -= len(list(ids))

    def draw(self, allowed: Any = None) -> int:
        ids = np.flatnonzero(allowed) if isinstance(allowed, np.ndarray) else list(allowed)
        return int(self.rng.choice(ids))

    def weigh(self, groups: Sequence[Sequence[int]]) -> int:
        possible = [place for place, group in enumerate(groups) if group]
        return self.rng.choice(possible) if possible else 0


class DeterminedVoice(RandomVoice):
    """Wants to say one text, in the longest tokens that are allowed."""

    def __init__(self, text: str, vocabulary: Vocabulary) -> None:
        super().__init__(random.Random(0), 10**6)
        self.rest = text.encode()
        self.texts = vocabulary.tokens.texts

    def append(self, ids: Iterable[int]) -> None:
        for i in ids:
            said = self.texts[i] or b""
            assert self.rest.startswith(said), (said, self.rest)
            self.rest = self.rest[len(said) :]

    def _fits(self, i: int) -> bool:
        text = self.texts[i]
        return text is not None and self.rest.startswith(text)

    def draw(self, allowed: Any = None) -> int:
        ids = np.flatnonzero(allowed) if isinstance(allowed, np.ndarray) else list(allowed)
        fitting = [int(i) for i in ids if self._fits(int(i))]
        assert fitting, self.rest
        return max(fitting, key=lambda i: len(self.texts[i] or b""))

    def weigh(self, groups: Sequence[Sequence[int]]) -> int:
        return next(place for place, group in enumerate(groups) if any(map(self._fits, group)))


def written(schema: Any, voice: RandomVoice, vocabulary: Vocabulary) -> tuple[str, bool]:
    out = bytearray()
    outcome = write_json(compile_schema(schema), voice, vocabulary, out.extend)
    return out.decode(), outcome.shortened


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    kinds = [*_LEAVES, *(list(_NESTS) * 2 if depth < 4 else [])]
    kind = rng.choice(kinds)
    return _LEAVES[kind](rng) if kind in _LEAVES else _NESTS[kind](rng, depth + 1)


def _string(rng: random.Random) -> dict[str, Any]:
    least = rng.choice([0, 0, 1, 5])
    return {"type": "string", "minLength": least} | rng.choice([{}, {"maxLength": least + rng.choice([0, 1, 3, 20])}])


def _number(rng: random.Random) -> dict[str, Any]:
    low = rng.choice([-1000, -1, 0, 0.5, 3, 99, 1e9, -0.0000001])
    bounds = [{}, {"minimum": low}, {"exclusiveMinimum": low}, {"maximum": low}, {"minimum": low, "maximum": low + 2.5}]
    return {"type": rng.choice(["number", "integer"])} | rng.choice(bounds)


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(["a", "b", "ab", 'é"x', "k\\", "😀", ""], rng.randint(0, 4))
    return {
        "type": "object",
        "properties": {name: random_schema(rng, depth) for name in names},
        "required": [name for name in names if rng.random() < 0.6],
        "additionalProperties": False,
    }


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    least = rng.choice([0, 0, 1, 2])
    most = rng.choice([{}, {"maxItems": least + rng.choice([0, 1, 4])}])
    return {"type": "array", "items": random_schema(rng, depth), "minItems": least} | most


_VALUES = ["a", "ab", "abc", "é", "😀😁", '"q"', 1, 10, 100, 1.5, None, True, "", [1], {"a": 2}]
_LEAVES: dict[str, Any] = {
    "string": _string,
    "number": _number,
    "enum": lambda rng: {"enum": rng.sample(_VALUES, rng.randint(1, 5))},
    "const": lambda rng: {"const": rng.choice(_VALUES)},
    "types": lambda rng: {"type": rng.sample(["string", "null", "integer", "boolean", "array", "object"], 2)},
    "anything": lambda rng: {},
    "reference": lambda rng: {"$ref": rng.choice(["#/$defs/list", "#/$defs/chain"])},
}
_NESTS: dict[str, Any] = {
    "object": _object,
    "array": _array,
    "anyOf": lambda rng, depth: {"anyOf": [random_schema(rng, depth) for _ in range(rng.randint(1, 4))]},
    "map": lambda rng, depth: {"type": "object", "additionalProperties": random_schema(rng, depth)},
}


@pytest.mark.parametrize("vocabulary", [byte_vocabulary, word_vocabulary], ids=["bytes", "words"])
def test_whatever_the_model_says_the_json_is_valid(vocabulary: Any) -> None:
    known, ended = vocabulary(), {True: 0, False: 0}
    for seed in range(25):
        rng = random.Random(seed)
        schema = random_schema(rng) | {"$defs": DEFINITIONS}
        for left in (0, rng.randint(1, 30), 200):
            text, shortened = written(schema, RandomVoice(rng, left), known)
            jsonschema.validate(json.loads(text), schema)
            ended[shortened] += 1
    assert min(ended.values()) > 5


_FORM = {
    "type": "object",
    "properties": {
        "label": {"type": "string", "maxLength": 12},
        "role": {"enum": ["detects", "detect", "moves", "mixed"]},
        "n": {"type": "integer", "minimum": -20, "maximum": 1000},
        "x": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        "cites": {"type": "array", "items": {"type": "string", "enum": ["c1", "c10", "c2"]}, "maxItems": 3},
        "more": {
            "anyOf": [
                {
                    "type": "object",
                    "properties": {"kind": {"const": "a"}, "v": {"type": "boolean"}},
                    "required": ["kind", "v"],
                },
                {
                    "type": "object",
                    "properties": {"kind": {"const": "b"}, "w": {"type": "string"}},
                    "required": ["kind"],
                },
                {"type": "string"},
                {"enum": [1, 12, 123]},
            ]
        },
    },
    "required": ["label", "role", "n", "x", "cites", "more"],
    "additionalProperties": False,
}
_SAID = {
    "label": ["", "a cat", "é 😀 naïve", 'quote " \\ \n', "twelve chars"],
    "role": ["detects", "detect", "moves", "mixed"],
    "n": [-20, -1, 0, 7, 10, 12, 100, 999, 1000],
    "x": [None, 0, 1, 0.5, 0.25, 0.000001],
    "cites": [[], ["c1"], ["c10", "c1"], ["c2", "c10", "c1"]],
    "more": [{"kind": "a", "v": True}, {"kind": "b", "w": "x"}, {"kind": "b"}, "abc", "", 1, 12, 123],
}


@pytest.mark.parametrize("ascii_only", [False, True])
def test_whatever_is_valid_can_be_said(ascii_only: bool) -> None:
    vocabulary = byte_vocabulary()
    for turn in range(max(map(len, _SAID.values()))):
        value = {name: options[turn % len(options)] for name, options in _SAID.items()}
        jsonschema.validate(value, _FORM)
        wanted = json.dumps(value, ensure_ascii=ascii_only).replace("1e-06", "0.000001")
        if ascii_only and "\\ud8" in wanted:
            continue  # characters beyond U+FFFF are written as themselves
        assert written(_FORM, DeterminedVoice(wanted, vocabulary), vocabulary) == (wanted, False)


def test_json_mode_is_an_object_of_anything() -> None:
    vocabulary = byte_vocabulary()
    wanted = '{"a b": [1, "x", {"k": null}], "c": {"d": [[], {}]}, "e": -12, "f": true}'
    out = bytearray()
    write_json(any_object(), DeterminedVoice(wanted, vocabulary), vocabulary, out.extend)
    assert out.decode() == wanted


def test_numbers_can_begin_as_those_within_the_bounds_do() -> None:
    for low, high, decimals in [
        (-12, 105, 0),
        (3, 3, 0),
        (0, 9, 0),
        (-250, -99, 2),
        (-5, 130, 1),
        (95, 105, 1),
        (1, 1, 2),
    ]:
        number = Number(low, high, decimals)
        valid = set()
        for whole, sign in itertools.product(range(131 if high > 100 else 13), ("", "-")):
            for count in range(decimals + 1):
                for digits in itertools.product("0123456789", repeat=count):
                    text = f"{sign}{whole}" + ("." + "".join(digits) if count else "")
                    value = int(str(whole) + "".join(digits)) * 10 ** (decimals - count) * (-1 if sign else 1)
                    if low <= value <= high and (value or not sign):
                        valid.add(text)
        beginnings = {text[:end] for text in valid for end in range(len(text) + 1)}
        letters = ("", *"0123456789.-")
        tried = {"".join(parts) for parts in itertools.product(letters, repeat=3)} | beginnings
        assert {text for text in tried if can_begin(number, text)} == beginnings & tried
        assert {text for text in beginnings if is_whole(number, text)} - valid <= {"-0", "-0.0", "-0.00"}
        assert valid <= {text for text in tried if is_whole(number, text)}
        for text in beginnings:
            whole = completed(number, text)
            assert whole.startswith(text)
            assert whole in valid


def test_strings_are_json_strings() -> None:
    rng = random.Random(0)
    pieces = [*'aé😀 \\"/bnu09dDfF8\n\t', "\\u", "\\ud8", "\\n", '\\"']
    verdicts = {True: 0, False: 0}
    for _ in range(4000):
        raw = "".join(rng.choices(pieces, k=rng.randint(0, 6))).encode()
        raw = raw[: rng.randint(0, len(raw))] if rng.random() < 0.3 else raw
        state, kept = walk(START, raw)
        try:
            json.loads(b'"' + raw + b'"').encode()
            good = True
        except ValueError:
            good = False
        if b"\\ud" in raw.lower():
            continue  # pairs of halves are JSON, but are not written
        assert (state == START) == good, raw
        verdicts[good] += 1
        if state != CLOSED:
            json.loads(b'"' + finished(kept) + b'"')
    assert min(verdicts.values()) > 500


def test_strings_without_limit_leave_tokens_for_the_rest() -> None:
    vocabulary = byte_vocabulary()
    schema = {"type": "object", "properties": {n: {"type": "string"} for n in "abc"}, "required": list("abc")}
    out = bytearray()
    babbling = RandomVoice(random.Random(0), 300)
    babbling.draw = lambda allowed=None: ord("x")
    outcome = write_json(compile_schema(schema), babbling, vocabulary, out.extend)
    lengths = [len(text) for text in json.loads(out).values()]
    assert lengths[0] == STRING_TOKENS
    assert min(lengths) > 20
    assert (outcome.cut, outcome.shortened) == (3, False)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "string", "pattern": "a"}, "'pattern'"),
        ({"type": "string", "format": "date"}, "'format'"),
        ({"oneOf": [{}]}, "'oneOf'"),
        ({"type": "object", "properties": {"a": {"not": {}}}}, ".a: keyword 'not'"),
        ({"type": "array", "uniqueItems": True}, "'uniqueItems'"),
        ({"type": "array", "items": {"prefixItems": []}}, "'prefixItems'"),
        ({"type": "integer", "multipleOf": 2}, "'multipleOf'"),
        ({"type": "integer", "minimum": 0.2, "maximum": 0.8}, "minimum"),
        ({"type": "number", "minimum": 3, "maximum": 2}, "minimum"),
        ({"type": "number", "minimum": "3"}, "minimum is '3'"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength"),
        ({"type": "string", "minLength": 10**7}, "characters"),
        ({"type": "array", "minItems": -1}, "minItems"),
        ({"type": "object", "required": ["a"], "properties": {}}, "required names 'a'"),
        ({"type": "strin"}, "'strin'"),
        ({"type": []}, "type"),
        ({"enum": []}, "enum"),
        ({"enum": [1], "type": "string"}, "enum"),
        ({"enum": [1, 5], "minimum": 3}, "'minimum' is not supported beside 'enum'"),
        ({"anyOf": []}, "anyOf"),
        ({"anyOf": [{}], "type": "string"}, "'type' is not supported beside 'anyOf'"),
        ({"allOf": [{}, {}]}, "'allOf'"),
        ({"$ref": "#/$defs/x"}, "#/$defs/x"),
        ({"$ref": "http://example.com/schema"}, "http://example.com/schema"),
        ({"$ref": "#"}, "never end"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "never end"),
        ({"const": "\ud800"}, "cannot hold"),
        ({"const": float("inf")}, "cannot hold"),
        (False, "false"),
        ([], "not an object"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_to_is_refused_by_name(schema: Any, named: str) -> None:
    with pytest.raises(BadSchema) as error:
        compile_schema(schema)
    assert named in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_deep_and_endless_schemas_are_refused_not_crashed_on() -> None:
    deep: Any = {"type": "string"}
    for _ in range(200):
        deep = {"type": "array", "items": deep}
    with pytest.raises(BadSchema, match="nested deeper"):
        compile_schema(deep)
    wide = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(400)}
    with pytest.raises(BadSchema, match="more than 300"):
        compile_schema({"$ref": "#/$defs/d0", "$defs": wide})
    itself = {"anyOf": [{"$ref": "#"}, {"$ref": "#"}, {"type": "null"}]}
    assert written(itself, RandomVoice(random.Random(0), 100), byte_vocabulary())[0] == "null"


_TEXT = 'The cat sat, in 1984: {"key": "a word"} é 😀 naïve'


def _trained(kind: str) -> PreTrainedTokenizerFast:
    special = ["<unk>", "<|end|>"]
    if kind == "byte-level":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = (
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
        )
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=300, initial_alphabet=alphabet, special_tokens=special, show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator([_TEXT] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<|end|>")


@pytest.mark.parametrize("kind", ["byte-level", "unigram"])
def test_tokens_are_the_bytes_of_their_text(kind: str) -> None:
    tokenizer = _trained(kind)
    found = token_bytes(tokenizer, len(tokenizer) + 3)
    ids: Any = tokenizer(_TEXT, add_special_tokens=False)["input_ids"]
    assert b"".join(found.texts[i] or b"?" for i in ids).decode().lstrip() == _TEXT
    assert found.texts[tokenizer.eos_token_id] is None
    assert found.texts[-3:] == (None, None, None)
    assert all(i in found.spellings[text] for i, text in enumerate(found.texts) if text)


def test_tokens_of_byte_fallback_are_bytes(shared: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260K")
    found = token_bytes(tokenizer, len(tokenizer))
    assert [found.texts[3 + byte] for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    ids = encode_inside('{"é', tokenizer)
    assert b"".join(found.texts[i] or b"?" for i in ids) == '{"é'.encode()
    assert ids[0] == 3 + ord("{")
