"""The keys that experiments with GPT-2 share, each declared once: a config gives them defaults of its own."""

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
    """One model size."""
    help = "of the model: tiny, mini, small, medium, or one times a width as in mini*0.5"
    return lab.anything(default, allowed="a size", help=help)


def sizes(default: str | list[str]) -> Any:
    """One model size or several."""
    help = "of the models: tiny, mini, small, medium, or one times a width as in mini*0.5"
    return lab.anything(default, allowed="one size or a list of them", help=help)


def data() -> Any:
    """Where the text comes from."""
    help = "stdlib, installed, wikitext-103, or a path to a UTF-8 file or to a folder with train, valid and test files"
    return lab.key("stdlib", NAME, help=help)


def vocabulary() -> Any:
    """What a token is."""
    return lab.key("bytes", NAME, help="bytes, or bpe:8192")


def length(default: int) -> Any:
    """Tokens a window."""
    return lab.integer(default, least=2, help="tokens a window")


def method() -> Any:
    """The search method."""
    return methods.method(help="how tickets are searched for")


def keep(default: float) -> Any:
    """The share of weights that is kept."""
    return lab.number(default, above=0.0, most=1.0, help="share of the weights that is kept")


def policy() -> Any:
    """What a share is of."""
    return lab.choice("layer", ("layer", "global"), help="whether each matrix keeps its share, or all together")


def schedule() -> Any:
    """How keep goes down."""
    return lab.choice("constant", tuple(masks.SCHEDULES), help="of keep, over the steps")


def masked() -> Any:
    """What is masked."""
    return lab.choice("all", ("all", "blocks"), help="all weight matrices, or blocks: embeddings stay random and whole")


def scores() -> Any:
    """How scores begin."""
    return lab.choice("kaiming_uniform", tuple(SCORES), help="what the scores are at first")


def kind() -> Any:
    """What a mask makes of a weight."""
    help = "of the blocks' masks: prune, signed, nested(levels=2), blocks(rows=4, columns=4) or n_of_m(n=2, m=4)"
    return lab.key("prune", A_KIND, help=help)


def scale() -> Any:
    """What is learned beside scores."""
    return lab.choice(None, FACTORS, help="what has a learned factor beside its scores; None: nothing")


def embedding_kind(default: str | None = None) -> Any:
    """The kind of the embeddings' masks."""
    return lab.key(default, A_KIND, help="of the embeddings' masks; None: as the blocks'")


def embedding_keep(default: float | None = None) -> Any:
    """The share of the embeddings that is kept."""
    return lab.number(default, above=0.0, most=1.0, help="share of the embeddings that is kept; None: keep")


def beta1(default: float) -> Any:
    """AdamW's first beta."""
    return lab.number(default, least=0.0, most=0.999, help="of AdamW, of all trainings: its running mean of gradients")


def beta2(default: float) -> Any:
    """AdamW's second beta."""
    return lab.number(default, least=0.0, most=0.99999, help="of AdamW, of all trainings: that of their squares")


def init(default: str, what: str) -> Any:
    """Random weights."""
    return lab.choice(default, tuple(gpt2.INITS), help=f"of {what}")


def qk_scale(default: float | list[float | str]) -> Any:
    """The scale of query and key."""
    help = "of query and key in the source: a number or theory, n^(1/4), n the width of a head"
    return lab.key(default, SCALES, help=help)


def std(default: float, what: str) -> Any:
    """One standard deviation of random weights."""
    return lab.number(default, above=0.0, help=f"standard deviation of {what}")


def rates(default: float | Sequence[float], what: str = "every point takes the best by its own pilots") -> Any:
    """Learning rates to choose from."""
    return lab.key(default, DISTINCT, help=f"learning rate: {what}")


def pilot_steps(default: int) -> Any:
    """Steps of short trainings."""
    return lab.integer(default, least=1, help="of the short training by which a learning rate is chosen of several")


def steps(default: int) -> Any:
    """Steps of training."""
    return lab.integer(default, least=1, help="of each training")


def batch(default: int) -> Any:
    """Windows a step."""
    return lab.integer(default, least=1, help="windows a step")


def warmup() -> Any:
    """How the learning rate begins."""
    return lab.number(0.1, least=0.0, most=0.9, help="share of the steps in which the learning rate rises")


def clip() -> Any:
    """The largest gradient."""
    return lab.number(1.0, above=0.0, help="norm that gradients are clipped to")


def windows() -> Any:
    """How much is validated."""
    return lab.integer(64, least=1, help="of validation")


def stride() -> Any:
    """How far the window moves that scores a text's own parts."""
    help = "tokens that a window scores of a text's own validation and test parts, at most length; None: half of length"
    return lab.integer(None, least=1, help=help)


def documents() -> Any:
    """Where the contexts of these parts end."""
    help = "of these parts: joined, or separate, each of WikiText's articles without the one before"
    return lab.choice("joined", tuple(texts.DOCUMENTS), help=help)


def checkpoints(what: str = "of this config alone") -> Any:
    """Where a run that was cut goes on."""
    help = f"a folder, from which a run that was cut goes on; {what}"
    return lab.free(lab.text(None, "a folder, or None", help=help))


def saves() -> Any:
    """How often a training is stored."""
    return lab.free(lab.integer(10, least=1, help="checkpoints of each training on its way, where there is a folder"))


def device() -> Any:
    """Where models are trained."""
    return lab.free(lab.choice("auto", ("auto", "cpu", "cuda"), help="auto: cuda where there is one"))
