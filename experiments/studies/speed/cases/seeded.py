"""Cases of `slth.kernels.seeded_linear` and `seeded_weight`: rows of whole blocks and others, few tokens and many.

The weight itself is compared in every bit.
"""

import torch

from slth.experiments.studies.speed.cases import Case, Tensors, normal, with_gradients
from slth.kernels import pack_mask, seeded_linear, seeded_weight

DISTRIBUTIONS = ("uniform", "uniform16", "sign")


def _bits(shape: tuple[int, int], device: torch.device) -> torch.Tensor:
    """Those of a mask that keeps half."""
    return pack_mask(normal("seeded/mask", *shape, device=device) > 0)


def _weight(name: str, distribution: str, shape: tuple[int, int], *, masked: bool = True, large: bool = False) -> Case:
    def inputs(device: torch.device) -> Tensors:
        return {"bits": _bits(shape, device)}

    def call(tensors: Tensors, impl: str) -> Tensors:
        bits = tensors["bits"]
        weight = seeded_weight(
            shape, 7, "cases", distribution, scale=0.3, stream=1 << 31, bits=bits if masked else None,
            device=bits.device, impl=impl,
        )  # fmt: skip
        return {"out": weight}

    what = f"weight {name}, {distribution}"
    return Case(what, "seeded_weight", inputs, call, large=large, exact=True, dtypes=(torch.float32,))


def _linear(name: str, distribution: str, tokens: tuple[int, ...], inward: int, outward: int, **options: bool) -> Case:
    """Inward inputs, outward outputs. Options: first (weight (in, out)), bias, turned (strided tensors), large."""
    first = options.get("first", False)
    shape = (inward, outward) if first else (outward, inward)
    wanted = ("x", "bias") if options.get("bias") else ("x",)

    def inputs(device: torch.device) -> Tensors:
        x = normal("seeded/x", *tokens, inward, device=device)
        given = {"x": x, "bits": _bits(shape, device)}
        return given | ({"bias": normal("seeded/bias", outward, device=device)} if options.get("bias") else {})

    def call(tensors: Tensors, impl: str) -> Tensors:
        def run(given: Tensors) -> torch.Tensor:
            x, bits = given["x"], given["bits"]
            if options.get("turned"):
                x = torch.cat((x, x), -1)[..., ::2] if x.dim() == 1 else x.mT.contiguous().mT
                bits = torch.cat((bits, bits), 1)[:, : bits.shape[1]]
            return seeded_linear(
                x, 7, "cases", bits, distribution, scale=0.25, columns=shape[1] if first else None,
                bias=given.get("bias"), impl=impl,
            )  # fmt: skip

        return with_gradients(tensors, wanted, run)

    return Case(f"linear {name}, {distribution}", "seeded_linear", inputs, call, large=bool(options.get("large")))


def _of(distribution: str) -> list[Case]:
    return [
        _weight("whole blocks", distribution, (5, 256)),
        _weight("whole blocks, all kept", distribution, (17, 128), masked=False),
        _weight("odd", distribution, (7, 37)),
        _weight("odd, all kept", distribution, (3, 5), masked=False),
        _weight("large", distribution, (4096, 4096), large=True),
        _weight("large and odd", distribution, (1001, 999), large=True),
        _linear("one token", distribution, (1,), 128, 19, bias=True),
        _linear("one token, no batch", distribution, (), 256, 5),
        _linear("one token, inputs first", distribution, (1,), 21, 128, first=True, bias=True),
        _linear("one token, odd", distribution, (1,), 37, 11, bias=True),
        _linear("three tokens", distribution, (1, 3), 128, 19, bias=True),
        _linear("three tokens, inputs first", distribution, (3,), 19, 128, first=True),
        _linear("20 tokens, odd", distribution, (4, 5), 37, 11),
        _linear("20 tokens, odd, inputs first", distribution, (20,), 37, 11, first=True, bias=True),
        _linear("strides", distribution, (18,), 128, 9, turned=True),
        _linear("one input", distribution, (3,), 1, 4),
        _linear("one token, large", distribution, (1,), 4096, 4096, bias=True, large=True),
        _linear("16 tokens, large", distribution, (16,), 2048, 3072, large=True),
        _linear("16 tokens, large, inputs first", distribution, (16,), 2048, 3072, first=True, large=True),
        _linear("1,000 tokens, large", distribution, (1000,), 768, 3072, bias=True, large=True),
        _linear("100 tokens, large and odd", distribution, (100,), 501, 333, first=True, large=True),
    ]


CASES = [case for distribution in DISTRIBUTIONS for case in _of(distribution)]
