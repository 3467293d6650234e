"""Compilers, exports and transforms follow a wrapped model, masks and all, or one sentence says to unwrap it first."""

import copy
import itertools

import pytest
import torch
from cases import CASES, Case
from helpers import compiles, thinned
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import slth
from slth import handle

CASE = {case.name: case for case in CASES}


class Own(nn.Module):
    """Reads a weight in a forward of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.w = nn.Linear(4, 8), nn.Linear(8, 2), nn.Parameter(torch.randn(4, 8))

    def forward(self, x):
        return self.b(torch.tanh(self.a(x) + x @ self.w))


def x():
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


OWN = Case("own", Own, lambda: (x(),))
SEQUENCE = Case("sequence", lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), lambda: (x(),))
KINDS = [*itertools.product((OWN, SEQUENCE, CASE["torch attention, packed"]), ("layer", "global"))]


def wrapped(case, policy, seed=0):
    return slth.wrap(case.build(), 0.3, policy, seed=seed)


def write(model, seed=0):
    for scores in handle(model).scores():
        scores.data.copy_(torch.randn(scores.shape, generator=torch.Generator().manual_seed(seed)))


def unwrapped(model):
    return slth.unwrap(copy.deepcopy(model))


@compiles
@pytest.mark.parametrize(("case", "policy"), KINDS)
def test_one_graph_follows_the_scores(case, policy):
    model = wrapped(case, policy)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for keep in (0.3, 0.3, 0.6):
        for group in handle(model).groups:
            group.current = keep
        write(model)
        torch.testing.assert_close(case.run(compiled), case.run(unwrapped(model)))
        one, other = (torch.autograd.grad(case.loss(m), handle(model).scores()) for m in (compiled, model))
        torch.testing.assert_close(one, other)


@compiles
@pytest.mark.parametrize(
    ("case", "policy", "strict", "gradients"),
    thinned([(*kind, *flags) for kind in KINDS for flags in itertools.product([False, True], repeat=2)], 3),
)
def test_an_exported_graph_is_right(case, policy, strict, gradients):
    model = wrapped(case, policy)
    with torch.set_grad_enabled(gradients):
        graph = torch.export.export(model, case.inputs(), case.options, strict=strict).module()
        torch.testing.assert_close(case.run(graph), case.run(model))


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("make", [lambda m: torch.jit.trace(m, (x(),)), torch.jit.script], ids=["trace", "script"])
@pytest.mark.parametrize("case", [OWN, SEQUENCE], ids=lambda case: case.name)
def test_what_cannot_follow_masks_says_to_unwrap(make, case):
    model = wrapped(case, "layer").eval()
    with pytest.raises(ValueError, match=r"is masked, .*: slth\.unwrap it first"):
        make(model)
    model = slth.unwrap(model)
    torch.testing.assert_close(make(model)(x()), model(x()))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize(("case", "policy"), [(OWN, "global"), (SEQUENCE, "layer")], ids=["own", "sequence"])
class TestTransforms:
    def test_called_with_other_scores_it_has_their_masks(self, case, policy):
        model, other = (wrapped(case, policy) for _ in range(2))
        write(other)
        state, before = dict(other.named_parameters()), model(x())
        assert functional_call(model, state, (x(),)).equal(other(x()))
        assert model(x()).equal(before)
        traced = make_fx(lambda state, x: functional_call(model, state, (x,)))(dict(model.named_parameters()), x())
        torch.testing.assert_close(traced(state, x()), other(x()))

    def test_gradients_of_scores_are_straight_through(self, case, policy):
        model = wrapped(case, policy)
        state = {name: p.detach() for name, p in model.named_parameters()}
        names = [name for name in state if name.endswith("scores")]
        scores = [model.get_parameter(name) for name in names]
        wanted = dict(zip(names, torch.autograd.grad(model(x()).square().sum(), scores), strict=True))

        def loss(state, x):
            return functional_call(model, state, (x,)).square().sum()

        found = grad(loss)(state, x())
        rows = vmap(grad(loss), (None, 0))(state, x())
        forward = jacfwd(loss)(state, x())
        for name in names:
            torch.testing.assert_close(found[name], wanted[name])
            torch.testing.assert_close(rows[name].sum(0), wanted[name])
            torch.testing.assert_close(jacrev(loss)(state, x())[name], wanted[name])
            torch.testing.assert_close(forward[name], wanted[name])

    @pytest.mark.parametrize(
        "transform",
        [
            vmap,
            jacrev,
            jacfwd,
            lambda m: grad(lambda x: m(x).square().sum()),
            lambda m: vmap(jacrev(m)),
            lambda m: vmap(hessian(lambda x: m(x).square().sum())),
        ],
        ids=["vmap", "jacrev", "jacfwd", "grad", "vmap of jacrev", "vmap of hessian"],
    )
    def test_transforms_of_the_inputs(self, case, policy, transform):
        model = wrapped(case, policy)
        write(model)
        torch.testing.assert_close(transform(model)(x()), transform(unwrapped(model))(x()))

    def test_gradients_of_gradients(self, case, policy):
        model = wrapped(case, policy).double()
        scores = handle(model).scores()
        first = torch.autograd.grad(model(x().double()).square().sum(), scores, create_graph=True)
        assert all(g.any() for g in torch.autograd.grad(sum(g.square().sum() for g in first), scores))


def test_an_ensemble_in_one_call():
    models = [wrapped(SEQUENCE, "global") for _ in range(3)]
    for seed, model in enumerate(models):
        write(model, seed)
    state, base = stack_module_state(models), copy.deepcopy(models[0]).to("meta")
    inputs = x()
    out = vmap(lambda params, buffers: functional_call(base, (params, buffers), (inputs,)))(*state)
    torch.testing.assert_close(out, torch.stack([model(x()) for model in models]))
