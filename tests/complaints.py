"""Commands that are to be refused, run in this process."""

import pytest

from dmvae import cli


def complain(capsys, *arguments: object) -> tuple[int, str]:
    """(exit code, standard error) of `dmvae ARGUMENTS`."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in arguments])
    return stop.value.code, capsys.readouterr().err
