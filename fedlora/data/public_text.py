"""The public general text that shows what an adapter has forgotten."""

from collections.abc import Sequence

from fedlora.data.examples import Example
from fedlora.data.formats import read_dataset
from fedlora.errors import DataError
from fedlora.publish import Forgetting
from fedlora.sections import AT_SITE, Dataset, Source


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
    source = text.model_dump(include=set(Source.model_fields))
    rows = read_dataset(Dataset(**source), objective="sft").examples
    return [row for row in rows if isinstance(row, Example)]
