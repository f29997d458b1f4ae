"""`stackwise generate`: a prompt continued with the model of a run or an export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from stackwise.cli.process import load_torch, prepare_process


@click.command(
    epilog="""\b
Examples:
  stackwise generate runs/grow-bytes-001 --prompt "def main("
  stackwise generate runs/grow-bytes-001 --prompt "import " --top-p 0.9
  stackwise generate runs/masks-001 --prompt "class " --tokens 64 --steps 16
  stackwise generate runs/arrays-001 --ids --prompt "3 1 4 1 5"
  stackwise generate runs/chat-001 --prompt "Hi" --stop "</s>" --stream
  stackwise generate runs/grow-bytes-001 --prompt "def " --prompt "class "
  stackwise generate runs/pictures-001 --count 16 --output new.safetensors

Exit codes: 0 done, 2 the task cannot generate, or a prompt or option is at
fault, 3 a provider's defect.
"""
)
@click.argument("directory", metavar="RUN", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    help="Text to continue; may be empty for a task that fills in masks. Given several times, all are continued.",
)
@click.option("--stop", multiple=True, help="Text that ends a continuation, which is cut in front of it; with --ids, an id.")
@click.option("--stream", is_flag=True, help="Print each piece as it is generated.")
@click.option("--tokens", type=click.IntRange(min=1), default=100, show_default=True, help="Tokens to generate.")
@click.option("--temperature", type=float, default=1.0, show_default=True, help="Divides the logits; 0 takes the most likely token.")
@click.option("--top-k", type=click.IntRange(min=1), help="Sample from the K most likely tokens. [default: all]")
@click.option(
    "--top-p",
    type=float,
    help="Sample from the smallest set of most likely tokens whose total probability is at least this. [default: all]",
)
@click.option("--steps", type=click.IntRange(min=1), help="Diffusion: number of unmasking steps. [default: as many as tokens]")
@click.option(
    "--no-cache", is_flag=True, help="Causal: keep no cache of keys and values, recompute them for every token; the text is the same."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all random draws.")
@click.option(
    "--count", type=click.IntRange(min=1), help="Number of rows to make, instead of a prompt, where the task makes images and the like."
)
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Safetensors file for the rows of --count.")
@click.option("--ids", is_flag=True, help="Read and print token ids, separated by blanks, instead of text.")
def generate(
    directory: Path,
    prompts: tuple[str, ...],
    stop: tuple[str, ...],
    stream: bool,
    tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    steps: int | None,
    no_cache: bool,
    seed: int,
    ids: bool,
    count: int | None,
    output: Path | None,
) -> None:
    """Continue a prompt with the model of a RUN, or of an export.

    The weights are the final ones, or those of the newest checkpoint if the run has not finished; the tokenizer is the one that the run
    holds. Its task decides how tokens are generated: one after the other (causal language models; sequence to sequence, where the prompt
    is the source), or by filling in masks step by step (mask diffusion). Each prompt is printed with its continuation, on a line
    of its own. The same seed gives the same tokens.
    """
    if count is not None:
        _write_rows(directory, count, seed, output, prompted=bool(prompts))
        return
    if output is not None:
        raise click.UsageError("--output takes the rows of --count: continuations are printed")
    if not prompts:
        raise click.UsageError("give --prompt, text to continue; or --count, where the task makes images and the like")
    if stream and len(prompts) > 1:
        raise click.BadParameter("the pieces of several prompts would be mixed up: stream one", param_hint="--stream")
    from stackwise.contracts.generation import GenerationSettings

    prepare_process()
    load_torch()
    from stackwise.saved.generate import generate_all

    ending = tuple(id for text in stop for id in _as_ids(text)) if ids else ()
    settings = GenerationSettings(
        tokens=tokens, temperature=temperature, top_k=top_k, top_p=top_p, steps=steps, cache=not no_cache, stop=ending
    )
    given = [_as_ids(prompt) if ids else prompt for prompt in prompts]
    if stream:
        click.echo(prompts[0], nl=False)
    made = generate_all(directory, given, settings, seed=seed, stop=() if ids else stop, hear=_printing(ids=ids) if stream else None)
    if stream:
        click.echo()
        return
    for continuation in made:
        click.echo(" ".join(map(str, continuation.ids)) if continuation.text is None else continuation.text)


def _printing(*, ids: bool) -> Callable[[int, str | int], None]:
    """Prints each piece at once."""

    def printed(_: int, piece: str | int) -> None:
        click.echo(f" {piece}" if ids else piece, nl=False)

    return printed


def _as_ids(prompt: str) -> list[int]:
    try:
        return [int(word) for word in prompt.split()]
    except ValueError:
        raise click.BadParameter(f"{prompt!r} is not a list of token ids: write whole numbers with blanks between them") from None


def _write_rows(directory: Path, count: int, seed: int, output: Path | None, *, prompted: bool) -> None:
    if prompted or output is None:
        raise click.UsageError("--count takes no --prompt, and needs --output, a safetensors file for the rows")
    prepare_process()
    load_torch()
    from safetensors.torch import save_file

    from stackwise.errors import disk_errors
    from stackwise.saved.sample import sample

    made = sample(directory, count, seed=seed)
    with disk_errors(output, "nothing is lost but these rows: choose another place"):
        save_file({name: tensor.contiguous() for name, tensor in made.items()}, output)
    click.echo(f"{output}: " + ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in made.items()))
