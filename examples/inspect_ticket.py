"""Inspect a ticket and its heads: masks as tables, activations by hooks, and ablation of heads.

An applied ticket is a plain PyTorch module, so tools for trained networks work on it unchanged.

    python examples/inspect_ticket.py
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import slth
from slth.building import built_of
from slth.models import gpt2
from slth.tasks import text

LENGTH, STEPS = 32, 60


def loss_of(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Compute the loss of windows (count, length), in nats per token."""
    return cross_entropy(model(tokens).logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def main() -> dict[tuple[int, int], float]:
    """Print the content of a ticket and the effect of each head; return the losses without each (layer, head)."""
    tokens = text.Bytes().encode(__doc__ * 20)
    config = gpt2.config("tiny", width=0.5, length=LENGTH, n_layer=2)
    model = slth.wrap(gpt2.build(config, init="signed", base_std=0.07, seed=0), 0.5, "global", "*.h.*.c_*.weight")
    windows = lambda step: text.batch(tokens, 8, LENGTH, seed=0, step=step, name="batches")  # noqa: E731
    slth.fit(model, windows, loss_of, STEPS, lr=0.01)
    ticket = slth.Ticket.of(model, built=built_of(model))
    print(ticket.summary())

    net = ticket.apply(gpt2.build(config, seed=1))  # a plain module: its own weights are replaced
    shown, cache = text.windows(tokens, LENGTH, 8), {}
    for layer, block in enumerate(net.transformer.h):  # outputs of the heads, before they are mixed: (8, 32, d)
        block.attn.c_proj.register_forward_pre_hook(lambda m, inputs, layer=layer: cache.update({layer: inputs[0]}))
    losses, width = {}, config.n_embd // config.n_head
    with torch.no_grad():
        whole = loss_of(net, shown).item()
        norms = {layer: out.unflatten(-1, (-1, width)).norm(dim=-1).mean((0, 1)) for layer, out in cache.items()}
        for layer, head in ((layer, head) for layer in norms for head in range(config.n_head)):

            def without(module: nn.Module, inputs: tuple[torch.Tensor], head: int = head) -> torch.Tensor:
                return inputs[0].index_fill(-1, torch.arange(head * width, (head + 1) * width), 0.0)

            hook = net.transformer.h[layer].attn.c_proj.register_forward_pre_hook(without)
            losses[layer, head] = loss_of(net, shown).item()
            hook.remove()
            print(f"layer {layer}, head {head}: norm {norms[layer][head]:.3f}, loss {losses[layer, head] - whole:+.4f}")
    return losses


if __name__ == "__main__":
    main()
