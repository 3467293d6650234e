"""Products with masked weights: masks of bits and of scores, layouts, few and many tokens, every gradient."""

import torch

from slth import kernels
from slth.experiments.studies.speed.cases import Case, Tensors, normal, with_gradients
from slth.kernels import Threshold, pack_mask


def _mask(name: str, *shape: int, device: torch.device) -> torch.Tensor:
    """Bool, a third of it True."""
    return normal(f"{name} mask", *shape, device=device) > 0.43


def _linear(name: str, tokens: tuple[int, ...], rows: int, columns: int, device: torch.device) -> Tensors:
    """Inputs of a product: x, weight, bias, bits and scores with many ties."""
    weight = normal(f"{name} weight", rows, columns, device=device, scale=columns**-0.5)
    return {
        "x": normal(f"{name} x", *tokens, columns, device=device),
        "weight": weight,
        "bias": normal(f"{name} bias", rows, device=device),
        "bits": pack_mask(_mask(name, rows, columns, device=device)),
    } | _scored(name, rows, columns, device=device)


def _scored(name: str, *shape: int, device: torch.device) -> Tensors:
    """Scores of few magnitudes, as integers (which no dtype rounds), and a threshold amid their ties."""
    scores = normal(f"{name} scores", *shape, device=device).mul(2).round().int()
    ties = (scores.abs().flatten() == 1).nonzero().flatten()
    last_tie = ties[ties.numel() // 2] if ties.numel() else torch.tensor(-1, device=device)
    return {"scores": scores, "last_tie": last_tie}


def _threshold(t: Tensors) -> Threshold:
    return Threshold(torch.ones((), device=t["last_tie"].device), t["last_tie"])


def _by_bits(t: Tensors, impl: str) -> Tensors:
    def call(leaves: Tensors) -> torch.Tensor:
        return kernels.masked_linear(leaves["x"], t["weight"], t["bits"], bias=leaves["bias"], impl=impl)

    return with_gradients({"x": t["x"], "bias": t["bias"]}, ("x", "bias"), call)


def _by_scores(t: Tensors, impl: str) -> Tensors:
    def call(leaves: Tensors) -> torch.Tensor:
        mask = leaves["scores"], _threshold(t)
        return kernels.masked_linear(leaves["x"], t["weight"], mask, bias=leaves["bias"], impl=impl)

    leaves = {"x": t["x"], "bias": t["bias"], "scores": t["scores"].float()}
    return with_gradients(leaves, ("x", "bias", "scores"), call)


def _strided(t: Tensors, impl: str) -> Tensors:
    """All tensors in other layouts than their shapes', without a bias."""
    scores = t["scores"].float().mT.contiguous().mT
    weight = t["weight"].mT.contiguous().mT

    def call(leaves: Tensors) -> torch.Tensor:
        x = leaves["x"].repeat_interleave(2, dim=-1)[..., ::2]
        return kernels.masked_linear(x, weight, (leaves["scores"], _threshold(t)), impl=impl).flip(-1).mT

    return with_gradients({"x": t["x"], "scores": scores}, ("x", "scores"), call)


def _strided_bits(t: Tensors, impl: str) -> Tensors:
    bits, weight = t["bits"].mT.contiguous().mT, t["weight"].repeat_interleave(2, dim=0)[::2]
    x = t["x"].mT.contiguous().mT
    return with_gradients({"x": x}, ("x",), lambda leaves: kernels.masked_linear(leaves["x"], weight, bits, impl=impl))


def _weights(t: Tensors, impl: str) -> Tensors:
    """The masked weight alone, by bits and by scores, with its gradient from numbers that are rounded before."""
    scores = t["scores"].float().requires_grad_()
    by_scores = kernels.masked_weight(t["weight"], (scores, _threshold(t)), impl=impl)
    (slope,) = torch.autograd.grad(by_scores, scores, t["grad"])
    transposed = t["weight"].mT.contiguous().mT
    return {
        "by_scores": by_scores.detach(),
        "by_bits": kernels.masked_weight(t["weight"], t["bits"], impl=impl),
        "transposed": kernels.masked_weight(transposed, t["bits"], impl=impl),
        "grad_scores": slope,
    }


def _case(call, name: str, tokens: tuple[int, ...], rows: int, columns: int, **more) -> Case:
    def inputs(device: torch.device) -> Tensors:
        return _linear(name, tokens, rows, columns, device)

    return Case(name, "masked_linear", inputs, call, **more)


def _weights_case(name: str, *shape: int, large: bool = False) -> Case:
    def inputs(device: torch.device) -> Tensors:
        bits = pack_mask(_mask(name, *shape, device=device))
        weight, grad = (normal(f"{name} {which}", *shape, device=device) for which in ("weight", "grad"))
        return {"weight": weight, "grad": grad, "bits": bits} | _scored(name, *shape, device=device)

    return Case(name, "masked_weight", inputs, _weights, large=large, exact=True)


CASES = [
    _case(_by_bits, "one token, one entry", (1,), 1, 1),
    _case(_by_bits, "one token, in parts", (1,), 33, 330),
    _case(_by_bits, "5 tokens, bits in bytes", (5,), 40, 70),
    _case(_by_bits, "70 tokens, bits in words", (2, 35), 33, 96),
    _case(_by_scores, "one token by scores, in parts", (1,), 20, 290),
    _case(_by_scores, "17 tokens by scores", (17,), 65, 40),
    _case(_by_scores, "66 tokens by scores", (3, 22), 30, 67),
    _case(_by_scores, "tiles in two groups", (66,), 300, 20),
    _case(_by_scores, "two groups of the inputs' tiles", (66,), 20, 530),
    _case(_by_scores, "many heads of 1 token by scores", (2, 3, 1), 16, 16),
    _case(_strided, "other layouts by scores", (2, 19), 35, 44),
    _case(_strided_bits, "other layouts by bits", (2, 20), 35, 64),
    _weights_case("weights", 37, 70),
    _weights_case("weights of one column", 5, 1),
    _weights_case("weights of heads", 3, 19, 64),
    _weights_case("weights of heads in groups", 2, 2, 9, 33),
    *(
        _case(call, f"GPT-2 small {rows}x{columns}, {tokens} tokens {by}", (tokens,), rows, columns, large=True)
        for rows, columns, tokens in (
            (2304, 768, 1),
            (768, 3072, 16),
            (3072, 768, 64),
            (768, 3072, 1000),
            (768, 768, 8192),
        )
        for by, call in (("by bits", _by_bits), ("by scores", _by_scores))
    ),
    _case(_strided, "GPT-2 small, other layouts", (8, 200), 768, 3072, large=True),
    _weights_case("weights of GPT-2 small", 768, 3072, large=True),
    _weights_case("weights of wide heads", 12, 64, 1024, large=True),
]
