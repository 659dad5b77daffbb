"""`lmq completion`: the script that makes a shell complete commands, jobs, queues, workers and models."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from lmq.cli import session as cli
from lmq.cli.errors import Failure, Status

EXAMPLE = """
echo 'source <(lmq completion bash)' >> ~/.bashrc
lmq completion zsh > ~/.zfunc/_lmq
lmq completion fish > ~/.config/fish/completions/lmq.fish
"""
VARIABLE = "_LMQ_COMPLETE"


@cli.command("completion", example=EXAMPLE)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script of a shell."""
    from lmq.cli.root import root

    complete = get_completion_class(shell)
    assert complete is not None
    completion = complete(root, {}, "lmq", VARIABLE)
    try:
        click.echo(completion.source_template % completion.source_vars())
    except (KeyError, TypeError) as error:
        raise Failure(f"no script for {shell}: {error}", Status.FAILED) from error
