"""The config keys that experiments with GPT-2 share, each declared once; a config sets their defaults."""

from collections.abc import Sequence
from typing import Any

from slth.experiments import lab
from slth.experiments.lab import BadConfig, methods
from slth.experiments.lab.options import Kind, a_number, as_list, where
from slth.masking import kinds, masks
from slth.masking.scales import SCALES as FACTORS
from slth.models import gpt2
from slth.tasks import text as texts
from slth.wrapping import SCORES

# ---------------------------------------------------------------- values


def _positive(key: str, value: Any) -> list[float]:
    try:
        values = [a_number(above=0.0).read(key, one) for one in as_list(value)]
    except BadConfig as error:
        raise BadConfig(key, value, "a number > 0 or a list of them, not empty") from error
    if not values:
        raise BadConfig(key, value, "a number > 0 or a list of them, not empty")
    return values


def _distinct(key: str, value: Any) -> list[float]:
    values = _positive(key, value)
    if len(set(values)) < len(values):
        raise BadConfig(key, value, "a number > 0 or a list of them, none twice")
    return values


def _scales(key: str, value: Any) -> list[float | str]:
    allowed = "theory, a number > 0, or a list of these"
    try:
        scales = [one if one == "theory" else a_number(above=0.0).read(key, one) for one in as_list(value)]
    except BadConfig as error:
        raise BadConfig(key, value, allowed) from error
    if not scales or len(set(scales)) < len(scales):
        raise BadConfig(key, value, f"{allowed}, none twice")
    return scales


def _kind(key: str, value: Any) -> kinds.Kind:
    try:
        return kinds.as_kind(value)
    except ValueError as error:
        raise BadConfig(
            key, value, f"one of {', '.join(kinds.KINDS)}, with its options in parentheses ({error})"
        ) from error


A_KIND = Kind(_kind, lambda: f"one of {', '.join(kinds.KINDS)}, with its options in parentheses")
POSITIVE = Kind(_positive, lambda: "a number > 0 or a list of them")
DISTINCT = Kind(_distinct, lambda: "a number > 0 or a list of them, none twice")
SCALES = Kind(_scales, lambda: "theory, a number > 0, or a list of these, none twice")
NAME = where(lambda value: isinstance(value, str), "a name")

# ---------------------------------------------------------------- keys


def size(default: str | list[str]) -> Any:
    """Declare the key for one model size."""
    help = "model size: tiny, mini, small or medium, or one of these times a width factor, as in mini*0.5"
    return lab.anything(default, allowed="a size", help=help)


def sizes(default: str | list[str]) -> Any:
    """Declare the key for one or several model sizes."""
    help = "model sizes: tiny, mini, small or medium, or one of these times a width factor, as in mini*0.5"
    return lab.anything(default, allowed="one size or a list of them", help=help)


def data() -> Any:
    """Declare the key for the text corpus."""
    help = "text: stdlib, installed, wikitext-103, or a path to a UTF-8 file or a folder with train, valid, test files"
    return lab.key("stdlib", NAME, help=help)


def vocabulary() -> Any:
    """Declare the key for the vocabulary."""
    return lab.key("bytes", NAME, help="tokens: bytes, or a byte-level BPE of the text with its size, as in bpe:8192")


def length(default: int) -> Any:
    """Declare the key for the length of windows."""
    return lab.integer(default, least=2, help="tokens per window")


def method() -> Any:
    """Declare the key for the search method."""
    return methods.method(help="search method of tickets, with its options as in method.rate=0.2")


def keep(default: float) -> Any:
    """Declare the key for the share of weights to keep."""
    return lab.number(default, above=0.0, most=1.0, help="share of the masked weights that is kept")


def policy() -> Any:
    """Declare the key for the groups that compete for the share."""
    help = "layer: each matrix keeps this share; global: all matrices together do"
    return lab.choice("layer", ("layer", "global"), help=help)


def schedule() -> Any:
    """Declare the key for the schedule of keep."""
    return lab.choice("constant", tuple(masks.SCHEDULES), help="how keep falls from 1 to its value over the steps")


def masked() -> Any:
    """Declare the key for the masked weights."""
    help = "masked weights: all matrices, or only those of the blocks, with random and unpruned embeddings"
    return lab.choice("all", ("all", "blocks"), help=help)


def scores() -> Any:
    """Declare the key for the initial scores."""
    return lab.choice("kaiming_uniform", tuple(SCORES), help="initialisation of the scores")


def kind() -> Any:
    """Declare the key for the kind of masks."""
    help = "kind of the blocks' masks: prune, signed, nested(levels=2), blocks(rows=4, columns=4) or n_of_m(n=2, m=4)"
    return lab.key("prune", A_KIND, help=help)


def scale() -> Any:
    """Declare the key for learned factors."""
    return lab.choice(None, FACTORS, help="what has a learned scale factor in addition to scores; None: nothing")


def embedding_kind(default: str | None = None) -> Any:
    """Declare the key for the kind of the embeddings' masks."""
    return lab.nullable(lab.key(default, A_KIND, help="kind of the embeddings' masks; None: that of the blocks"))


def embedding_keep(default: float | None = None) -> Any:
    """Declare the key for the share of the embeddings to keep."""
    help = "share of the embeddings that is kept; None: that of keep"
    return lab.nullable(lab.number(default, above=0.0, most=1.0, help=help))


def beta1(default: float) -> Any:
    """Declare the key for AdamW's first beta."""
    help = "AdamW's beta of the running mean of gradients, in all trainings"
    return lab.number(default, least=0.0, most=0.999, help=help)


def beta2(default: float) -> Any:
    """Declare the key for AdamW's second beta."""
    help = "AdamW's beta of the running mean of squared gradients, in all trainings"
    return lab.number(default, least=0.0, most=0.99999, help=help)


def init(default: str, what: str) -> Any:
    """Declare a key for the initialisation of random weights."""
    return lab.choice(default, tuple(gpt2.INITS), help=f"initialisation of {what}")


def qk_scale(default: float | list[float | str]) -> Any:
    """Declare the key for the scale of query and key."""
    help = "factor of the source's query and key weights: a number, or theory: n^(1/4) for heads of width n"
    return lab.key(default, SCALES, help=help)


def std(default: float, what: str) -> Any:
    """Declare a key for a standard deviation of random weights."""
    return lab.number(default, above=0.0, help=f"standard deviation of {what}")


def rates(default: float | Sequence[float], what: str = "for each network, pilots choose one of several") -> Any:
    """Declare a key for learning rates to choose from."""
    return lab.key(default, DISTINCT, help=f"peak learning rates: {what}")


def pilot_steps(default: int) -> Any:
    """Declare the key for the steps of pilots."""
    return lab.integer(default, least=1, help="steps of the pilots, short trainings that choose a learning rate")


def steps(default: int) -> Any:
    """Declare the key for the steps of training."""
    return lab.integer(default, least=1, help="steps of each training")


def batch(default: int) -> Any:
    """Declare the key for the batch size."""
    return lab.integer(default, least=1, help="windows per step")


def warmup() -> Any:
    """Declare the key for the warm-up."""
    return lab.number(0.1, least=0.0, most=0.9, help="share of the steps in which the learning rate rises to its peak")


def clip() -> Any:
    """Declare the key for gradient clipping."""
    return lab.number(1.0, above=0.0, help="largest norm of the gradient, to which it is clipped")


def windows() -> Any:
    """Declare the key for the number of validation windows."""
    return lab.integer(64, least=1, help="number of validation windows")


def stride() -> Any:
    """Declare the key for the stride of sliding-window perplexity."""
    help = "tokens that each window scores of a text's own validation and test parts, at most length; None: half of it"
    return lab.integer(None, least=1, help=help)


def documents() -> Any:
    """Declare the key for the documents of sliding-window perplexity."""
    help = "contexts in these parts: joined, one text, or separate, with WikiText's articles as separate documents"
    return lab.choice("joined", tuple(texts.DOCUMENTS), help=help)


def checkpoints(what: str = "with the same config") -> Any:
    """Declare the key for the folder of checkpoints."""
    help = f"a folder, from which an interrupted run is resumed {what}"
    return lab.free(lab.text(None, "a folder, or None", help=help))


def saves() -> Any:
    """Declare the key for the number of checkpoints."""
    return lab.free(lab.integer(10, least=1, help="checkpoints per training, if there is a folder of checkpoints"))


def device() -> Any:
    """Declare the key for the device."""
    return lab.free(lab.choice("auto", ("auto", "cpu", "cuda"), help="device; auto: cuda if there is one, else cpu"))
