"""Cases of `slth.kernels.mhla`: blocks of any size, the last of them shorter, widths that fit no tile, entries of 0."""

import torch

from slth.experiments.studies.speed.cases import Case, Tensors, normal, with_gradients
from slth.kernels import mhla

WANTED = ("q", "k", "v", "mixing")
SIXTEEN = (torch.float16, torch.bfloat16)


def _case(
    name: str,
    shape: tuple[int, ...],
    m: int,
    block: int,
    *,
    causal: bool = True,
    normalise: bool = True,
    **options: bool,
) -> Case:
    """Shape is that of q, (..., heads, T, n)."""

    def inputs(device: torch.device) -> Tensors:
        blocks = -(-shape[-2] // block) + options.get("larger", False)
        q, k = (normal(f"mhla/{one}", *shape, device=device).abs() for one in "qk")
        v = normal("mhla/v", *shape[:-1], m, device=device)
        mixing = normal("mhla/mixing", blocks, blocks, device=device).abs()
        if options.get("blind"):
            q[..., : shape[-2] // 3, :] = 0  # tokens that attend with 0
            mixing[-1] = 0
        return {"q": q, "k": k, "v": v, "mixing": mixing}

    def call(tensors: Tensors, impl: str) -> Tensors:
        def run(given: Tensors) -> torch.Tensor:
            q, k, v, mixing = (given[one] for one in WANTED)
            if options.get("turned"):  # heads within tokens, and widths strided
                q = q.transpose(-3, -2).contiguous().transpose(-3, -2)
                k = k.mT.contiguous().mT
                v = torch.cat((v, v), -1)[..., ::2]
                mixing = mixing.mT
            return mhla(q, k, v, mixing, block=block, causal=causal, normalise=normalise, impl=impl)

        if tensors["mixing"].dtype in SIXTEEN and not options.get("narrow"):
            tensors = tensors | {"mixing": tensors["mixing"].float()}  # beside 16 bits, as autocast has it
        return with_gradients(tensors, WANTED, run)

    return Case(f"mhla {name}", "mhla", inputs, call, large=bool(options.get("large")))


CASES = [
    _case("causal, last block shorter", (2, 2, 37, 8), 5, 16),
    _case("bidirectional, last block shorter", (2, 2, 37, 8), 5, 16, causal=False),
    _case("causal sums", (1, 2, 37, 8), 5, 16, normalise=False),
    _case("bidirectional sums", (1, 2, 37, 8), 5, 16, causal=False, normalise=False),
    _case("one token", (1, 1, 1, 4), 3, 8, normalise=False),
    _case("blocks of one", (1, 1, 5, 4), 3, 1),
    _case("one block", (1, 1, 19, 20), 17, 128, normalise=False),
    _case("one block, bidirectional", (1, 1, 19, 20), 17, 128, causal=False, normalise=False),
    _case("two blocks of 100", (1, 1, 117, 16), 16, 100),
    _case("wide keys", (1, 1, 40, 100), 9, 32),
    _case("wide values", (1, 1, 40, 9), 100, 32),
    _case("wide, bidirectional", (1, 1, 40, 70), 70, 32, causal=False),
    _case("zeros, causal", (1, 2, 30, 8), 8, 8, blind=True),
    _case("zeros, bidirectional", (1, 2, 30, 8), 8, 8, causal=False, blind=True),
    _case("larger matrix", (1, 1, 20, 8), 8, 8, larger=True),
    _case("strides", (2, 2, 20, 8), 6, 8, turned=True),
    _case("three batch axes", (2, 1, 2, 17, 8), 6, 8),
    _case("no batch", (2, 17, 8), 6, 8),
    _case("mixing of the same dtype", (2, 17, 8), 6, 8, narrow=True),
    _case("1,000 tokens", (2, 3, 1000, 64), 64, 64, large=True),
    _case("4,096 tokens, bidirectional", (1, 4, 4096, 64), 64, 64, causal=False, large=True),
    _case("width 128", (1, 2, 1500, 128), 128, 128, large=True),
    _case("width 256", (1, 2, 777, 256), 256, 128, large=True),
    _case("width 256 sums", (1, 2, 777, 200), 256, 100, normalise=False, large=True),
]
