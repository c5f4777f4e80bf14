"""``fedlora chat``: ask the base model and the adapter the same question, side by side."""

from pathlib import Path
from typing import Annotated

import typer


def chat(
    run: Annotated[
        Path, typer.Argument(help="A run folder, or a release folder in PEFT's format.")
    ],
    ask: Annotated[
        list[str] | None,
        typer.Option(metavar="QUESTION", help="Ask this and stop; may be repeated."),
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="The base model, when it is not where the release says.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 80,
) -> None:
    """Ask the base model and the adapter the same question, side by side."""
    from rich.console import Console
    from rich.table import Table

    from fedlora.runtime.aggregator.conversation import Conversation

    console = Console()
    conversation = Conversation.open(run, base_model=base_model)

    def answer(question: str) -> None:
        base, adapted = conversation.ask(question, max_new_tokens=max_new_tokens)
        table = Table("base", "with the adapter", title=question, expand=True, title_justify="left")
        table.add_row(base, adapted)
        console.print(table)

    for question in ask or []:
        answer(question)
    if not ask:
        console.print("Ask a question; an empty line ends.", style="dim")
    while not ask:
        try:
            question = console.input("[bold]> [/bold]").strip()
        except (EOFError, KeyboardInterrupt):
            break
        if not question:
            break
        answer(question)
