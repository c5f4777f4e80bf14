"""``fedlora chat``: ask the base model and adapters on it the same question, side by side."""

from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.cli.adapters_read import Registry
from fedlora.errors import FedloraError, plain

if TYPE_CHECKING:
    from rich.console import Console

    from fedlora.runtime.conversation import Conversation


def chat(
    adapter: Annotated[
        str,
        typer.Argument(
            help="A run folder, a folder in PEFT's format, or NAME, NAME@ALIAS or NAME@RELEASE of "
            "the registry."
        ),
    ],
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="OTHER", help="One more adapter to ask; may be repeated."),
    ] = None,
    ask: Annotated[
        list[str] | None,
        typer.Option(metavar="QUESTION", help="Ask this and stop; may be repeated."),
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="The base model, when it is not where the adapter says.")
    ] = None,
    registry: Registry = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 80,
) -> None:
    """Ask the base model and adapters on it the same question, side by side.

    An adapter that is named by an alias is replaced when the alias has moved.
    """
    from rich.console import Console

    from fedlora.runtime.conversation import Conversation

    console = Console()
    references = [adapter, *(against or [])]
    conversation = Conversation.open(references, base_model=base_model, registry=registry)
    for question in ask or []:
        _answer(conversation, question, console, max_new_tokens=max_new_tokens)
    if not ask:
        console.print("Ask a question; an empty line ends.", style="dim")
    while not ask:
        try:
            question = console.input("[bold]> [/bold]").strip()
        except (EOFError, KeyboardInterrupt):
            break
        if not question:
            break
        _follow(conversation, console)
        _answer(conversation, question, console, max_new_tokens=max_new_tokens)


def _follow(conversation: "Conversation", console: "Console") -> None:
    try:
        for speaker in conversation.follow():
            text = f"{speaker.reference} is {(speaker.release or '')[:12]} now."
            console.print(text, style="yellow", markup=False)
    except FedloraError as error:
        text = f"Still the adapters from before: {plain(str(error))}"
        console.print(text, style="yellow", markup=False)


def _answer(
    conversation: "Conversation", question: str, console: "Console", *, max_new_tokens: int
) -> None:
    from rich.table import Table
    from rich.text import Text

    answers = conversation.ask(question, max_new_tokens=max_new_tokens)
    table = Table(title=Text(question), expand=True, title_justify="left")
    table.add_column("base")
    for speaker in conversation.speakers:
        release = f" ({speaker.release[:8]})" if speaker.release else ""
        table.add_column(Text(f"{speaker.reference}{release}"), overflow="fold")
    table.add_row(*map(Text, answers))
    console.print(table)
