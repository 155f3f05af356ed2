"""What a stage's `updates` gives is looked at before the loop uses it."""

import pytest
import torch

from dmvae.training.stage import Update
from dmvae.training.updates import as_turns, as_update

LOSS = torch.ones(2, requires_grad=True).sum()


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (LOSS, "stage mine: updates yielded Tensor; give Update"),
        (
            Update("tokeniser", LOSS),
            "'tokeniser', which networks.trains does not have; did you mean 'tokenizer'",
        ),
        (Update("tokenizer", LOSS.expand(2)), r"mine: the loss of 'tokenizer' has shape \[2\]; give a scalar"),
        (Update("tokenizer", (LOSS, {})), "mine: the loss of 'tokenizer' is a tuple; give a scalar"),
        (Update("tokenizer", None), "mine: the loss of 'tokenizer' is a NoneType; give a scalar"),
        (Update("tokenizer", LOSS.detach()), "mine: the loss of 'tokenizer' depends on nothing that trains"),
    ],
)
def test_an_update_is_looked_at(found, message):
    right = Update("tokenizer", LOSS)
    assert as_update("mine", right, {"tokenizer": []}) is right
    with pytest.raises(ValueError, match=message):
        as_update("mine", found, {"tokenizer": []})


def test_updates_that_are_returned_are_told():
    assert list(as_turns("mine", iter([1]))) == [1]
    for wrong, what in ((Update("tokenizer", LOSS), "Update"), ([], "list"), (None, "NoneType")):
        with pytest.raises(ValueError, match=f"stage mine: updates returned {what}; yield each Update"):
            as_turns("mine", wrong)
