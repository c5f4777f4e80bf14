"""The public general text that shows what an adapter has forgotten."""

from collections.abc import Sequence

from fedlora.data.examples import Example
from fedlora.data.formats import read_dataset
from fedlora.errors import DataError
from fedlora.publish import Forgetting
from fedlora.sections import AT_SITE, Dataset


def public_examples(text: Forgetting) -> Sequence[Example]:
    """Return the rows of a public text.

    Raises:
        DataError: it is named by the sites alone, or cannot be read.
    """
    if text.path == AT_SITE:
        raise DataError(
            "publish.forgetting: the public text is named by each site itself, in a deployment. To "
            "simulate, give it a path."
        )
    rows = read_dataset(Dataset(path=text.path, type=text.type, packages=text.packages))
    if rows.type == "text-label":
        raise DataError(f"publish.forgetting: {text.path} has labels, which are not predicted.")
    return [row for row in rows.examples if isinstance(row, Example)]
