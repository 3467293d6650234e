"""A search in `transformers.Trainer`: `Trainer(slth.wrap(model), ..., callbacks=[SearchCallback(IteRand())])`.

Trainer trains whatever has a gradient, so the scores of a wrapped model; this calls what a search does before and after
each step. Trainer's own choices stay: take weight_decay=0.0 (its default), a warm-up and lr_scheduler_type="cosine" as
`slth.fit` does, and a learning rate near 0.01.
"""

from __future__ import annotations

from typing import Any

from slth.extras import extra
from slth.search import EdgePopup, Search
from slth.wrapping import handle

with extra("gpt2"):
    from transformers import TrainerCallback


class SearchCallback(TrainerCallback):
    """Calls the hooks of a search (:class:`EdgePopup` by default): schedules of keep, redraws, freezing.

    A step is one of the optimiser, of however many batches it accumulates. Checkpoints of Trainer hold what the search
    keeps beside the scores, and resume_from_checkpoint goes on from there. After the last step keep is its final share.

    Raises ValueError for what is no search; as Trainer is made, for a model that is not wrapped; and for a search that
    would never act in so many steps.
    """

    def __init__(self, method: Search | None = None) -> None:
        if method is not None and not isinstance(method, Search):
            raise ValueError(f"method={method!r}: must be a search, as slth.search.IteRand()")
        self._method = self._search = method or EdgePopup()

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make the model ready, before a checkpoint is read into it."""
        self._method.prepare(kwargs["model"])

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin anew, or put right what follows from the checkpoint that has been read."""
        model, self._search = kwargs["model"], self._method.for_steps(state.max_steps)
        if state.global_step == 0:
            self._search.prepare(model)
            return
        for masked in handle(model).weights.values():
            masked.gate = self._search.gate(masked)
        self._search.restore(model, state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Act before a step."""
        self._search.before_step(kwargs["model"], state.global_step, state.max_steps, kwargs["optimizer"])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Act after a step, while gradients are there."""
        self._search.after_step(kwargs["model"], state.global_step, state.max_steps, kwargs["optimizer"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Finish after the last step, before it is evaluated and saved."""
        if state.global_step == state.max_steps:
            self._search.finish(kwargs["model"])
