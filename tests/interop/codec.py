"""`dmvae encode` and `dmvae decode` in this process, and how they refuse."""

import pytest

from dmvae import cli


def encode(images, tokenizer, out, *more):
    given = ["--tokenizer", str(tokenizer), "--out", str(out), "--workers", "0", "--precision", "float32"]
    cli.main(["encode", str(images), *given, *more])


def decode(latents, tokenizer, out, *more):
    cli.main(["decode", str(latents), "--tokenizer", str(tokenizer), "--out", str(out), *more])


def complaint(capsys, function, *arguments):
    with pytest.raises(SystemExit) as stop:
        function(*arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1
    return error
