"""Run a search in `transformers.Trainer`: `Trainer(slth.wrap(model), ..., callbacks=[SearchCallback(IteRand())])`.

Trainer trains all parameters with requires_grad, which in a wrapped model are the scores. The callback adds the hooks
that a search runs before and after each step. Trainer keeps its own optimiser and schedule: use weight_decay=0.0 (its
default), a warm-up and lr_scheduler_type="cosine", as `slth.fit` does, and a learning rate near 0.01.
"""

from __future__ import annotations

from typing import Any

from slth.extras import extra
from slth.search import EdgePopup, Search
from slth.search.arguments import check_method
from slth.wrapping import handle

with extra("gpt2"):
    from transformers import TrainerCallback


class SearchCallback(TrainerCallback):
    """Call the hooks of a search (:class:`EdgePopup` by default): the schedule of keep, redraws, freezing.

    A step is an optimiser step, however many batches it accumulates. Trainer's checkpoints include the state of the
    search, so that resume_from_checkpoint continues it. After the last step, keep has its final value.

    Raises ValueError if `method` is not a search, when the Trainer is created if its model is not wrapped, and when
    training begins if the search would never act in that number of steps.
    """

    def __init__(self, method: Search | None = None) -> None:
        check_method(method)
        self._method = self._search = method or EdgePopup()

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prepare the model before a checkpoint is loaded into it."""
        self._method.prepare(kwargs["model"])

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prepare a new search, or restore the state derived from the checkpoint that was loaded."""
        model, self._search = kwargs["model"], self._method.for_steps(state.max_steps)
        if state.global_step == 0:
            self._search.prepare(model)
            return
        for masked in handle(model).weights.values():
            masked.gate = self._search.gate(masked)
        self._search.restore(model, state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Call the search's hook before a step."""
        self._search.before_step(kwargs["model"], state.global_step, state.max_steps, kwargs["optimizer"])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Call the search's hook after a step, before the gradients are cleared."""
        self._search.after_step(kwargs["model"], state.global_step, state.max_steps, kwargs["optimizer"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Finish the search after the last step, before the model is evaluated and saved."""
        if state.global_step == state.max_steps:
            self._search.finish(kwargs["model"])
