"""Training at a site: the warm base model, the objectives, the one local loop, the evaluation."""

import logging

# Before bitsandbytes is imported: it warns of an optional kernel, which training never uses.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
