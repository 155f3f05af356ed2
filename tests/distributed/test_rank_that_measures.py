"""One rank makes pictures and figures of test data; the others wait for it, longer than for one in a training step."""

import time
from pathlib import Path

import pytest

import processes
import tiny
from dmvae.runtime import distributed
from dmvae.runtime.joined import joined
from dmvae.stages.reconstruction import DecoderStage
from dmvae.training.logging import read_figures

PATIENCE = 5.0
"""Seconds that ranks wait for each other within a training step."""


def measures(rank, path):
    def slowly(self, network):
        time.sleep(2 * PATIENCE)
        return {"psnr": 1.0}

    DecoderStage.measure = slowly
    with joined():
        distributed._patience = PATIENCE / 60
        tiny.run(Path(path), "kl", "tokenizer")


@pytest.mark.slow
def test_the_others_wait_for_the_rank_that_measures(tmp_path):
    path = tiny.write(tmp_path, run__measure_every=4, losses__adversarial__weight=0.0)
    assert processes.on_ranks(measures, str(path)) == [0, 0]
    rows = read_figures(tmp_path / "run/kl/tokenizer/log.jsonl")
    assert [row["step"] for row in rows if "test/psnr" in row] == [4]
