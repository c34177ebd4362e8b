"""Examples: what each configuration reads and scores, row by row, and that packed texts do not see each other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.examples import UNSCORED, ExamplesError, chunked, collate, packed, padded, split

MAKERS = {"padded": padded, "chunked": chunked, "packed": packed}


class Letters:
    """One token per letter a, b, c, …, numbered from 1; end-of-text, written `|`, is 0."""

    eos_token_id = 0

    def __call__(self, texts):
        return {"input_ids": [["|abcdefghij".index(letter) for letter in text] for text in texts]}


SHARES = {"validation_share": 0.2, "test_share": 0.1}


def test_the_split_is_fixed_by_its_seed_and_loses_nothing():
    texts = [f"text {i}" for i in range(30)]
    parts = split(texts, **SHARES, seed=42)
    assert [len(part) for part in (parts.training, parts.development, parts.test, parts.validation)] == [24, 3, 3, 6]
    assert sorted([*parts.training, *parts.validation]) == sorted(texts)
    assert set(parts.validation) == {*parts.development, *parts.test}
    torch.manual_seed(3)
    assert split(texts, **SHARES, seed=42) == parts != split(texts, **SHARES, seed=43)
    assert parts.training != sorted(parts.training, key=texts.index), "the order of the corpus is not kept"


def test_the_training_texts_are_the_studys_own_whatever_is_tested():
    """So the published configurations keep their 80/20, and all train on the same texts."""
    texts = [f"text {i}" for i in range(50)]
    one, other = (split(texts, validation_share=0.2, test_share=share, seed=42) for share in (0.02, 0.18))
    assert one.training == other.training and one.validation == other.validation
    few = split([str(i) for i in range(10)], validation_share=0.2, test_share=0.1, seed=42)
    # As scikit-learn's train_test_split(range(10), test_size=0.2, random_state=42) has it.
    assert few.training == list("50729436") and few.validation == ["8", "1"]
    assert len(split(texts[:11], validation_share=0.2, test_share=0.1, seed=42).validation) == 3, "it rounds up"


def test_no_part_is_empty():
    parts = split(["a", "b", "c"], validation_share=0.01, test_share=0.0, seed=0)
    assert [len(part) for part in (parts.training, parts.development, parts.test)] == [1, 1, 1]
    with pytest.raises(ExamplesError, match="2 texts are too few to split"):
        split(["a", "b"], **SHARES, seed=0)


def test_configuration_1_cuts_pads_and_scores_the_padding():
    assert padded(["ab", "abcdef"], Letters(), max_length=4) == [
        {"input_ids": [1, 2, 0, 0], "attention_mask": [1, 1, 0, 0], "labels": [1, 2, 0, 0]},
        {"input_ids": [1, 2, 3, 4], "attention_mask": [1, 1, 1, 1], "labels": [1, 2, 3, 4]},
    ]


def test_configuration_2_chunks_and_masks_every_end_of_text():
    assert chunked(["a|", "abcdef", "abcd"], Letters(), max_length=4) == [
        {"input_ids": [1, 0, 0, 0], "attention_mask": [1, 1, 0, 0], "labels": [1, UNSCORED, UNSCORED, UNSCORED]},
        {"input_ids": [1, 2, 3, 4], "attention_mask": [1, 1, 1, 1], "labels": [1, 2, 3, 4]},
        {"input_ids": [5, 6, 0, 0], "attention_mask": [1, 1, 0, 0], "labels": [5, 6, UNSCORED, UNSCORED]},
        {"input_ids": [1, 2, 3, 4], "attention_mask": [1, 1, 1, 1], "labels": [1, 2, 3, 4]},
    ]


def test_packed_rows_by_hand():
    """Five texts with their ends, of 5, 3, 2, 7 and 1 tokens; the fourth is cut at 6, and its end stands alone."""
    assert packed(["abcd", "ab", "c", "abcdef", ""], Letters(), max_length=6) == [
        {"input_ids": [1, 2, 3, 4, 5, 6], "position_ids": [0, 1, 2, 3, 4, 5], "labels": [UNSCORED, 2, 3, 4, 5, 6]},
        {
            "input_ids": [1, 2, 3, 4, 0, 0],
            "position_ids": [0, 1, 2, 3, 4, 0],
            "labels": [UNSCORED, 2, 3, 4, 0, UNSCORED],
        },
        {
            "input_ids": [1, 2, 0, 3, 0, 0],
            "position_ids": [0, 1, 2, 0, 1, 0],
            "labels": [UNSCORED, 2, 0, UNSCORED, 0, UNSCORED],
        },
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("abcdefghij", max_size=30), min_size=1, max_size=30), st.integers(2, 12))
def test_packing_keeps_every_token_once_and_wastes_less_than_half(texts, max_length):
    rows = packed(texts, Letters(), max_length=max_length)
    found = []
    for row in rows:
        assert len(row["input_ids"]) == len(row["position_ids"]) == len(row["labels"]) <= max_length
        starts = [i for i, position in enumerate(row["position_ids"]) if position == 0]
        for start, end in zip(starts, [*starts[1:], len(row["input_ids"])], strict=True):
            assert row["position_ids"][start:end] == list(range(end - start))
            assert row["labels"][start:end] == [UNSCORED, *row["input_ids"][start + 1 : end]]
            found.append(tuple(row["input_ids"][start:end]))
    ids = [[*one, 0] for one in Letters()(texts)["input_ids"]]
    expected = [tuple(one[i : i + max_length]) for one in ids for i in range(0, len(one), max_length)]
    assert sorted(found) == sorted(expected)
    used = sum(len(row["input_ids"]) for row in rows)
    assert len(rows) == 1 or used > len(rows) * max_length / 2, "two rows less than half full would have been one"


def test_rows_share_no_list():
    for make in MAKERS.values():
        for row in make(["ab", "abcd"], Letters(), max_length=4):
            assert row["labels"] is not row["input_ids"]


def test_packed_rows_become_one_row_and_its_layout_by_hand():
    batch = collate(packed(["abcd", "ab", "a"], Letters(), max_length=5))
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 0, 1, 2, 0, 1, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 0, 1]]
    assert batch["labels"].tolist() == [[UNSCORED, 2, 3, 4, 0, UNSCORED, 2, 0, UNSCORED, 0]]
    assert batch["slots"].tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 7, 7], [8, 9, 9, 9, 9]]
    assert batch["places"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 10, 11]


@pytest.mark.parametrize("make", [padded, chunked])
def test_other_rows_stand_below_each_other(make):
    rows = make(["abcd", "ab"], Letters(), max_length=3)
    batch = collate(rows)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert all(batch[name].tolist() == [row[name] for row in rows] for name in batch)
