"""The arguments keep, policy, weights and kind of `slth.wrap`, for all parameters or by shell pattern."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slth.masking import masks
from slth.masking.kinds import PRUNE, Kind, as_kind
from slth.masking.parameters import MaskedParameter, first_match, some
from slth.weights import inits, recipes

#: (name, keep, [(parameter name, index of its part)]) of a group.
Members = tuple[str, float, list[tuple[str, int]]]


@dataclass(frozen=True)
class Plan:
    """How each parameter is masked, by name, and the groups within which scores compete."""

    keeps: dict[str, float]
    groups: list[Members]
    kinds: dict[str, Kind]
    recipes: dict[str, recipes.Recipe]  # of redrawn weights


def plan(
    params: Sequence[MaskedParameter],
    keep: float | Mapping[str, float],
    policy: str | Mapping[str, str | Sequence[str]],
    weights: str | Mapping[str, str] | None,
    kind: Kind | str | Mapping[str, Kind | str],
    seed: int,
) -> Plan:
    """Plan what `slth.wrap` does to these parameters. Raises ValueError for arguments that do not fit them."""
    keeps = keeps_of(params, keep)
    groups, kinds = groups_of(params, keeps, policy), kinds_of(params, keeps, kind)
    for name, _, parts in groups:
        if len(unlike := {str(kinds[path]) for path, _ in parts}) > 1:
            raise ValueError(f"kind={', '.join(sorted(unlike))} within the group {name!r}: must be one for a group")
    return Plan(keeps, groups, kinds, recipes_of(params, keeps, weights, seed))


def check_types(keep: object, policy: object, parameters: object, weights: object) -> None:
    """Raise ValueError unless these are names, patterns or mappings as `slth.wrap` documents."""
    if not (parameters is None or _are_words(parameters)):
        raise ValueError(
            f"parameters={parameters!r}: must be shell patterns of parameter names, as 'fc.*', no layers' classes"
        )
    if isinstance(keep, Mapping) and not _are_words(list(keep)):
        raise ValueError(f"keep={keep!r}: must be a number in (0, 1], or such numbers by shell pattern")
    if not (isinstance(policy, str) or (isinstance(policy, Mapping) and all(map(_are_words, policy.values())))):
        raise ValueError(f'policy={policy!r}: must be "layer", "global" or patterns by group name')
    if not (
        weights is None
        or isinstance(weights, str)
        or (isinstance(weights, Mapping) and _are_words([*weights, *weights.values()]))
    ):
        raise ValueError(f"weights={weights!r}: must be a name of slth.weights.inits.INITS, names by pattern, or None")
    for init in weights.values() if isinstance(weights, Mapping) else [weights]:
        if not (init is None or init in inits.INITS):
            raise ValueError(f"weights={init!r}: must be one of {', '.join(inits.INITS)}")


def _are_words(value: object) -> bool:
    """Whether a value is a pattern or a sequence of patterns."""
    return isinstance(value, str) or (isinstance(value, Sequence) and all(isinstance(each, str) for each in value))


def keeps_of(params: Sequence[MaskedParameter], keep: float | Mapping[str, float]) -> dict[str, float]:
    """Return parameter name -> keep. Raises ValueError for a pattern or a parameter without a match."""
    if not isinstance(keep, Mapping):
        everywhere = masks.as_keep(keep)
        return {param.path: everywhere for param in params}
    keep = {pattern: masks.as_keep(value) for pattern, value in keep.items()}
    _all_used("keep", keep, params)
    matched = {param.path: first_match(keep, param.paths) for param in params}
    for path, share in matched.items():
        if share is None:
            raise ValueError(f"keep: no pattern of {', '.join(keep)} matches {path}; one must")
    return {path: share for path, share in matched.items() if share is not None}


def groups_of(
    params: Sequence[MaskedParameter], keeps: Mapping[str, float], policy: str | Mapping[str, str | Sequence[str]]
) -> list[Members]:
    """Return the groups. Raises ValueError for an unknown policy, and for different keeps within a group."""
    if isinstance(policy, str) and policy not in ("layer", "global"):
        raise ValueError(f'policy={policy!r}: must be "layer", "global" or patterns by group name')
    named = {} if isinstance(policy, str) else _patterns(policy)
    _all_used("policy", named, params)
    groups: dict[str, list[tuple[str, int]]] = {}
    for param in params:
        group = first_match(named, param.paths)
        for part in param.parts:
            alone = param.path + (f"[{part.role or part.index}]" if part.count > 1 else "")
            groups.setdefault("all weights" if policy == "global" else group or alone, []).append(
                (param.path, part.index)
            )
    result = []
    for name, parts in groups.items():
        shares = {keeps[path] for path, _ in parts}
        if len(shares) > 1:
            raise ValueError(f"keep={sorted(shares)} within the group {name!r}: must be one share for a group")
        result.append((name, shares.pop(), parts))
    return result


def kinds_of(
    params: Sequence[MaskedParameter], keeps: Mapping[str, float], kind: Kind | str | Mapping[str, Kind | str]
) -> dict[str, Kind]:
    """Return parameter name -> kind. Raises ValueError for a kind that does not fit, or a pattern without a match."""
    table = {key: as_kind(one) for key, one in kind.items()} if isinstance(kind, Mapping) else {"*": as_kind(kind)}
    _all_used("kind", table, params)
    kinds = {param.path: first_match(table, param.paths) or PRUNE for param in params}
    for param in params:
        one = kinds[param.path]
        for part in param.parts:
            try:
                one.check(part.of(param.tensor).shape, param.axes, keeps[param.path])
            except ValueError as error:
                raise ValueError(f"kind={one} of {param.path}: {error}") from error
    return kinds


def _patterns(policy: Mapping[str, str | Sequence[str]]) -> dict[str, str]:
    """Return pattern -> name of its group."""
    return {
        p: name for name, patterns in policy.items() for p in ([patterns] if isinstance(patterns, str) else patterns)
    }


def recipes_of(
    params: Sequence[MaskedParameter], keeps: Mapping[str, float], weights: str | Mapping[str, str] | None, seed: int
) -> dict[str, recipes.Recipe]:
    """Return parameter name -> recipe, for redrawn weights. Raises ValueError for a pattern that matches nothing."""
    if weights is None:
        return {}
    table = {"*": weights} if isinstance(weights, str) else dict(weights)
    _all_used("weights", table, params)
    result = {}
    for param in params:
        init = first_match(table, param.paths)
        if init is not None:
            result[param.path] = _recipe(param, init, keeps[param.path], seed)
    return result


def _recipe(param: MaskedParameter, init: str, keep: float, seed: int) -> recipes.Recipe:
    draws = []
    for part in param.parts:
        name = param.path + (f".{part.role or part.index}" if part.count > 1 else "")
        draws.append(recipes.draw(init, param.fan(part, keep), seed=seed, name=name))
    return recipes.Recipe(tuple(draws), param.parts[0].dim, param.padding_rows)


def _all_used(what: str, table: Mapping[str, object], params: Sequence[MaskedParameter]) -> None:
    for pattern in table:
        if not any(first_match({pattern: True}, param.paths) for param in params):
            raise ValueError(f"{what}: the pattern {pattern!r} matches no weight that is masked, of {some(params)}")
