"""What the residual stream says already at each depth, and which parts wrote the answer: observed, nothing patched.

All is read through TransformerLens's Bridge. Whatever the model then does to get its logits is held against them:
a model in which a number here would not be exact is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from nbpatch.engine.base import RUNS, answers_of, group_pairs
from nbpatch.engine.describe import describe_model, describe_tokens, describe_versions
from nbpatch.errors import PlanError, SiteError, suggest
from nbpatch.metrics import METRICS, Answers, Metric, MetricLike, as_metrics, check_wrong, logit_diff, measure
from nbpatch.model import Hook, Model, load
from nbpatch.prompts import PromptPair, TokenizedPair
from nbpatch.result import STATES, Result

BY = ("layer", "head")

_TOKENS_AT_ONCE = 4096
_LOGITS_AT_ONCE = 2**24
_ROUNDING = 1e-3  # logits; further off than that, a result says so


def logit_lens(
    model: Any, pairs: PromptPair | Sequence[PromptPair], *, metric: MetricLike | Sequence[MetricLike] = "logit_diff"
) -> Result:
    """Returns what the model would answer if it stopped at each depth: the stream there, unembedded.

    The residual stream before each layer and after the last goes through the model's own final norm, its scale
    recomputed, and unembedding, soft cap and logit scale included. At the last depth that is the model's own output.

    Args:
        model: what `load` takes or returned.
        pairs: one `PromptPair` or several.
        metric: a name, a function logits [pair d_vocab] → [pair], or a list of them.

    Returns:
        A `Result` whose `data` holds one variable per metric, in its unit, with dims (run, layer, pos, pair): run is
        clean or corrupted, layer "0_pre", "1_pre", … "final_post", pos the clean prompt's positions. The corrupted
        run is read at the aligned ones; NaN where a pair has no such position. The coordinate `end` [pair] is each
        pair's answer position: `data["logit_diff"].sel(pos=data["end"])` has dims (run, layer, pair). `baselines`
        are the runs' own outputs.

    Raises:
        PromptError: a pair that cannot be used.
        MetricError: unknown metric, or one that lacks what it needs.
        SiteError: the model does not show its stream, its Bridge does not answer as it does, or the lens at the last
            depth is not the model's output.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens"; as `transformer_lens.tools.analysis.logit_lens`.
    """
    metrics = as_metrics(metric)
    ready = load(model)
    tokenized = ready.tokenize(pairs)
    check_wrong(metrics, {number: one.wrong_ids for number, one in enumerate(tokenized)})
    for component in ("resid_pre", "resid_post"):
        ready.check_visible(component)
    with ready.lock:
        streams = {run: _streams(ready, tokenized, run) for run in RUNS}
        answers = answers_of(tokenized, streams["clean"].logits)
        for run in RUNS:
            last = _read(ready, streams[run].ends)
            what = "the stream after its last layer, unembedded, is not its own output"
            _check_equal(ready, last, streams[run].logits, what)
        values = np.stack([_lens_values(ready, metrics, streams[run], answers) for run in RUNS], 1)
    logits = {run: streams[run].logits for run in RUNS}
    depths = [*(f"{layer}_pre" for layer in range(ready.shape.n_layers)), "final_post"]
    labels = {"run": list(RUNS), "layer": depths, "pos": np.arange(values.shape[3]), "pair": np.arange(len(tokenized))}
    variables = {one.name: (values[number], one.unit, one.label) for number, one in enumerate(metrics)}
    absent = np.stack([~streams[run].there.numpy().T for run in RUNS])[:, None]
    data = _dataset(variables, labels, absent).assign_coords(end=("pair", [one.clean_end for one in tokenized]))
    made = _provenance("logit_lens", ready, tokenized, metrics, ("run", "layer", "pos"))
    return Result(data, _baselines(metrics, logits, answers), made, tuple(_said(tokenized)), None)


def direct_logit_attribution(model: Any, pairs: PromptPair | Sequence[PromptPair], *, by: str = "layer") -> Result:
    """Returns what each part of the model adds to logit(answer) − logit(wrong) directly, through the final norm.

    What a part writes to the residual stream at the answer position goes through the final norm, its scale held at
    what the run gave it, and the unembedding. Behind a part with a norm of its own (Gemma 2, OLMo 2) that is what
    this norm puts out, its scale held too for single heads. Over alternatives it is the mean on both sides.

    Args:
        model: what `load` takes or returned.
        pairs: one `PromptPair` or several, each with a wrong answer.
        by: "layer" (the embedding, each layer's attention and MLP, and the bias: what the final norm and the
            unembedding add themselves) or "head" (every head; biases of the attention belong to none).

    Returns:
        A `Result` whose `data["logit_diff"]`, in logits, has dims (run, component, pair) or (run, layer, head, pair),
        run being clean or corrupted. By layer, the components "embed", "0_attn_out", "0_mlp_out", … "bias" add up to
        the run's logit difference; where logits are soft-capped, to the one before the cap, and a warning says so.

    Raises:
        PromptError: a pair that cannot be used.
        PlanError: an unknown `by`, or a pair without a wrong answer.
        SiteError: the model does not show its parts, its Bridge does not answer as it does, or its parts do not add
            up to its logits.

    Source: Elhage et al. 2021; Wang et al. 2022; as `transformer_lens.tools.analysis.direct_logit_attribution`, whose
    folding of the final norm into the unembedding is not needed here.
    """
    if by not in BY:
        raise PlanError(f"cannot attribute by {by!r}.", where="by", fix=suggest(by, BY))
    ready = load(model)
    tokenized = ready.tokenize(pairs)
    _check_wrong(tokenized)
    for component in ("resid_pre", "attn_out", "mlp_out", "resid_post", *(("z",) if by == "head" else ())):
        ready.check_visible(component)
    with ready.lock:
        ends = {run: _ends(ready, tokenized, run, heads=by == "head") for run in RUNS}
        logits = {run: ends[run].logits for run in RUNS}
        answers = answers_of(tokenized, logits["clean"])
        parts = {run: _attributed(ready, ends[run], answers) for run in RUNS}
        values = [parts[run].by_layer if by == "layer" else _by_head(ready, ends[run], parts[run]) for run in RUNS]
    variables = {"logit_diff": (torch.stack(values).numpy(), "logit", "contribution to the logit difference")}
    labels = {"run": list(RUNS), **_part_labels(ready, by), "pair": np.arange(len(tokenized))}
    metrics = (METRICS["logit_diff"],)
    baselines = _baselines(metrics, logits, answers)
    made = _provenance("direct_logit_attribution", ready, tokenized, metrics, tuple(labels)[:-1])
    warnings = (*_said(tokenized), *_adding_up(parts, baselines))
    return Result(_dataset(variables, labels), baselines, {**made, "by": by}, warnings, None)


# -- running


def _observe(
    model: Model, ids: Int[Tensor, "pair pos"], names: Sequence[str], *, last: bool
) -> tuple[list[Tensor], Float[Tensor, "pair d_vocab"]]:
    """Returns what hook points see, [pair pos …] or [pair …] at the last position only, and the answer logits."""
    seen: list[list[Tensor]] = []
    logits: list[Tensor] = []
    for chunk in ids.split(max(1, _TOKENS_AT_ONCE // ids.shape[1])):
        kept: dict[str, Tensor] = {}
        logits.append(model.answer_logits(chunk, [_keeper(name, kept, last=last) for name in names]).float().cpu())
        missed = [name for name in names if name not in kept]
        if missed:
            raise _refusal(model, "a hook point was passed over", missed[0])
        seen.append([kept[name] for name in names])
    _check_same(model, ids[:1], logits[0][:1])
    return [torch.cat(values) for values in zip(*seen, strict=True)], torch.cat(logits)


@torch.no_grad()
def _check_same(model: Model, ids: Int[Tensor, "1 pos"], logits: Float[Tensor, "1 d_vocab"]) -> None:
    """Refuses a model whose Bridge is not quite it, such as one with a norm that TransformerLens takes for another."""
    if model.plain is not None:
        output = model.plain(ids.to(model.device))
        own = output if isinstance(output, Tensor) else output.logits
        _check_equal(model, logits, own[:, -1].cpu(), "TransformerLens's Bridge does not answer as the model itself")


def _keeper(name: str, kept: dict[str, Tensor], *, last: bool) -> Hook:
    def keep(value: Tensor, hook: Any) -> None:
        kept[name] = (value[:, -1] if last else value).detach().cpu().clone()

    return name, keep


def _refusal(model: Model, what: str, seen: str) -> SiteError:
    return SiteError(
        f"{model.name} cannot be read this way: {what}.",
        where="model",
        seen=seen,
        fix='nbp.patch(model, pairs, "resid_post"), which measures instead of reading',
    )


def _check_equal(model: Model, found: Tensor, expected: Tensor, what: str) -> None:
    """Refuses a model in which two ways to the same numbers differ by more than its type rounds."""
    allowed = torch.finfo(model.dtype).eps ** 0.5 * expected.abs().max().item()
    apart = (found.double() - expected.double()).abs().max().item()
    if not apart <= allowed:
        raise _refusal(model, what, f"they differ by up to {apart:.2g}; {allowed:.2g} would be rounding")


# -- the lens


@dataclass(frozen=True)
class _Streams:
    """One run's residual stream, in the clean prompts' positions.

    Attributes:
        values: where a pair has no such position, its answer position's.
        there: whether it has.
        ends: the stream after the last layer at the answer position.
        logits: the model's own, at the answer position.
    """

    values: Float[Tensor, "depth pair pos d_model"]
    there: Bool[Tensor, "pair pos"]
    ends: Float[Tensor, "pair d_model"]
    logits: Float[Tensor, "pair d_vocab"]


def _streams(model: Model, tokenized: Sequence[TokenizedPair], run: str) -> _Streams:
    shape = model.shape
    names = [str(model.hook_name("resid_pre", layer)) for layer in range(shape.n_layers)]
    names.append(str(model.hook_name("resid_post", shape.n_layers - 1)))
    places, there = _own_places(tokenized, run)
    values = torch.empty(len(names), *places.shape, shape.d_model, dtype=model.dtype)
    ends, logits = values.new_empty(values.shape[1], shape.d_model), torch.empty(len(tokenized), shape.d_vocab)
    for group in group_pairs(tokenized):
        rows = list(group.pairs)
        seen, logits[rows] = _observe(model, group.ids[run], names, last=False)
        for depth, value in enumerate(seen):
            values[depth, rows] = value[torch.arange(len(rows))[:, None], places[rows]]
        ends[rows] = seen[-1][:, -1]
    return _Streams(values, there, ends, logits)


def _own_places(
    tokenized: Sequence[TokenizedPair], run: str
) -> tuple[Int[Tensor, "pair pos"], Bool[Tensor, "pair pos"]]:
    """Returns each clean position's own position in a run, the last one where it has none, and whether it has one."""
    longest = max(len(one.clean_ids) for one in tokenized)
    last = [one.clean_end if run == "clean" else one.corrupted_end for one in tokenized]
    places = torch.tensor(last)[:, None].repeat(1, longest)
    there = torch.zeros(places.shape, dtype=torch.bool)
    for pair, one in enumerate(tokenized):
        own = {place: place for place in range(len(one.clean_ids))} if run == "clean" else dict(one.aligned)
        for clean, place in {**own, one.clean_end: last[pair]}.items():
            places[pair, clean], there[pair, clean] = place, True
    return places, there


def _lens_values(
    model: Model, metrics: Sequence[Metric], streams: _Streams, answers: Answers
) -> Float[NDArray[np.float64], "metric depth pos pair"]:
    depths, pairs, longest, _ = streams.values.shape
    values = np.empty((len(metrics), depths, longest, pairs))
    at_once = max(1, _LOGITS_AT_ONCE // (pairs * model.shape.d_vocab))
    for depth in range(depths):
        # Position by position: a user's metric must see one row per pair.
        for start in range(0, longest, at_once):
            logits = _read(model, streams.values[depth, :, start : start + at_once].transpose(0, 1))
            for place, row in enumerate(logits, start):
                for number, metric in enumerate(metrics):
                    values[number, depth, place] = measure(metric, row, answers).numpy()
    return np.where(streams.there.numpy().T, values, np.nan)


@torch.no_grad()
def _read(model: Model, stream: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_vocab"]:
    """Returns logits of the residual stream as the model's own end makes them."""
    from transformer_lens.tools.analysis.logit_lens import logit_readout

    try:
        return logit_readout(model.bridge, stream).values.float().cpu()
    except (ValueError, TypeError, NotImplementedError) as error:
        raise _refusal(model, "TransformerLens has no way from its stream to its logits", str(error)) from error


# -- the attribution


@dataclass(frozen=True)
class _Ends:
    """What one run wrote to the stream at the answer position, and the model's own logits there.

    Attributes:
        writes: the embedding, then each layer's attention and MLP.
        final: the stream after the last layer.
        heads: each layer's z, all heads in a row; none where it is not wanted.
    """

    writes: Float[Tensor, "write pair d_model"]
    final: Float[Tensor, "pair d_model"]
    heads: tuple[Float[Tensor, "pair z"], ...]
    logits: Float[Tensor, "pair d_vocab"]


@dataclass(frozen=True)
class _FrozenNorm:
    """A layer norm or RMS norm with its scale held at what some vectors gave it: an affine map for each of them.

    Attributes:
        gain: the norm's weight, up to a factor that `scale` has too.
        bias: what it makes of nothing.
        centred: whether it takes the mean off, as layer norms do.
    """

    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    centred: bool
    scale: Float[Tensor, "pair 1"]

    def linear(self, parts: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """Returns what it makes of parts of the vectors, without its bias."""
        return self.gain * self._centre(parts) / self.scale

    def back(self, toward: Float[Tensor, "pair d_model"]) -> Float[Tensor, "pair d_model"]:
        """Returns the directions before the norm that weigh parts as `toward` weighs what `linear` makes of them."""
        return self._centre(self.gain * toward / self.scale)

    def _centre(self, values: Tensor) -> Tensor:
        return values - values.mean(-1, keepdim=True) if self.centred else values


@dataclass(frozen=True)
class _Attributed:
    """One run's contributions to its logit difference.

    Attributes:
        by_layer: of each write, and of the bias, the last.
        direction: part · direction is what a part of the stream adds.
        capped: whether the model's logits are these after a soft cap.
    """

    by_layer: Float[Tensor, "component pair"]
    direction: Float[Tensor, "pair d_model"]
    capped: bool


def _ends(model: Model, tokenized: Sequence[TokenizedPair], run: str, *, heads: bool) -> _Ends:
    layers = range(model.shape.n_layers)
    parts = [(name, layer) for layer in layers for name in ("attn_out", "mlp_out")]
    sites = [("resid_pre", 0), *parts, ("resid_post", layers[-1]), *(("z", layer) for layer in layers if heads)]
    names = [str(model.hook_name(*site)) for site in sites]
    groups = group_pairs(tokenized)
    seen = [_observe(model, group.ids[run], names, last=True) for group in groups]
    # The groups one below the other are the pairs in another order.
    order = torch.tensor([pair for group in groups for pair in group.pairs]).argsort()
    values = [torch.cat([found[site] for found, _ in seen])[order].flatten(1) for site in range(len(sites))]
    streams = len(parts) + 2
    written = torch.stack(values[:streams]).double()
    return _Ends(written[:-1], written[-1], tuple(values[streams:]), torch.cat([own for _, own in seen])[order])


@torch.no_grad()
def _attributed(model: Model, ends: _Ends, answers: Answers) -> _Attributed:
    _check_equal(model, ends.writes.sum(0), ends.final, "what its layers write does not add up to its stream")
    norm = _freeze(model, "ln_final", ends.final)
    bridge, columns = model.bridge, answers.columns.to(model.device)
    unembed, constant = bridge.W_U[:, columns].double().cpu(), bridge.b_U[columns].double().cpu()
    logits = (norm.linear(ends.final) + norm.bias) @ unembed + constant
    after = bridge.adapter.apply_output_logits_transform
    own, what = after(logits), "the norm and unembedding of its stream are not its own output"
    _check_equal(model, own, ends.logits[:, answers.columns], what)
    # The slope at 0 keeps a logit scale and leaves a soft cap out.
    scale = after(torch.full((1, 1), 1e-6, dtype=torch.float64)).item() / 1e-6
    weights = scale * _weights(answers)
    toward = weights @ unembed.T
    direction = norm.back(toward)
    bias = toward @ norm.bias + weights @ constant
    by_layer = torch.cat([(ends.writes * direction).sum(-1), bias[None]])
    return _Attributed(by_layer, direction, not torch.allclose(own, scale * logits))


def _freeze(model: Model, path: str, at: Float[Tensor, "pair d_model"]) -> _FrozenNorm:
    """Returns the norm at a path in the Bridge, its scale held at what `at` gives it, found by trying.

    So it makes no difference how a family spells its weight, its offset of 1 or its epsilon.
    """
    norm = _part(model, path)

    def call(vectors: Tensor) -> Tensor:
        return norm(vectors.to(model.device, model.dtype)[None])[0].double().cpu()

    signs = 1.0 - 2.0 * (torch.arange(at.shape[-1], dtype=torch.float64) % 2)
    probe = signs - signs.mean()
    bias, once, moved = call(torch.stack([0 * probe, probe, probe + 1]))
    gain = (once - bias) / probe
    centred = bool((moved - once).abs().max() < 0.1 * (once - bias).abs().max())
    unit = _FrozenNorm(gain, bias, centred, torch.ones(len(at), 1, dtype=torch.float64))
    before, behind = unit.linear(at), call(at) - bias
    scale = before.square().sum(-1, keepdim=True) / (before * behind).sum(-1, keepdim=True)
    found = _FrozenNorm(gain, bias, centred, scale)
    _check_equal(model, found.linear(at), behind, f"{path} is neither a layer norm nor an RMS norm")
    return found


def _part(model: Model, path: str) -> nn.Module:
    try:
        return model.bridge.get_submodule(path)
    except AttributeError as error:
        raise _refusal(model, f"it has no {path}", str(error)) from error


def _weights(answers: Answers) -> Float[Tensor, "pair column"]:
    """Returns what each of `answers.columns` counts in the logit difference."""
    places = answers.within(answers.columns)
    one_each = torch.eye(len(answers.columns), dtype=torch.float64)
    rows = [torch.full((len(one_each),), pair) for pair in range(len(answers.answer))]
    return torch.stack([logit_diff(one_each, places.rows(row)) for row in rows])


@torch.no_grad()
def _by_head(model: Model, ends: _Ends, parts: _Attributed) -> Float[Tensor, "layer head pair"]:
    # The embedding is the first of the writes, then attention and MLP take turns.
    attention = ends.writes[1::2]
    written = [_head_writes(model, layer, z, attention[layer]) for layer, z in enumerate(ends.heads)]
    return torch.stack([(heads * parts.direction).sum(-1) for heads in written])


def _head_writes(
    model: Model, layer: int, z: Float[Tensor, "pair z"], attention: Float[Tensor, "pair d_model"]
) -> Float[Tensor, "head pair d_model"]:
    """Returns what each head adds to the stream, found by giving the output projection one head at a time."""
    heads, project = model.shape.n_heads, _part(model, f"blocks.{layer}.attn.o")
    own = torch.arange(z.shape[-1]) // (z.shape[-1] // heads) == torch.arange(heads + 1)[:, None]
    # One more than there are heads: of nothing the projection makes its bias.
    out = project((z * own[:, None]).to(model.device)).double().cpu()
    parts, bias = out[:-1] - out[-1], out[-1]
    whole = parts.sum(0) + bias
    path = str(model.hook_name("attn_out", layer)).removesuffix(".hook_out")
    if path.endswith("ln1_post"):
        norm = _freeze(model, path, whole)
        parts, bias = norm.linear(parts), norm.linear(bias) + norm.bias
    else:
        # Granite multiplies by a constant before it adds.
        factor = (whole * attention).sum() / whole.square().sum()
        parts, bias = factor * parts, factor * bias
    _check_equal(model, parts.sum(0) + bias, attention, f"the heads of layer {layer} do not add up to its attention")
    return parts


def _check_wrong(tokenized: Sequence[TokenizedPair]) -> None:
    lacking = [number for number, one in enumerate(tokenized) if not one.wrong_ids]
    if lacking:
        raise PlanError(
            "contributions are to logit(answer) − logit(wrong), and there is no wrong answer.",
            where="pairs",
            seen=f"pair {lacking[0] + 1} of {len(tokenized)} has answer only",
            fix='PromptPair(…, wrong=" …")',
        )


def _adding_up(parts: Mapping[str, _Attributed], baselines: xr.Dataset) -> list[str]:
    """Returns what contributions add up to where that is not quite the model's own logit difference."""
    sums = {run: parts[run].by_layer.sum(0).numpy() for run in RUNS}
    apart = max(float(np.abs(sums[run] - baselines[run].sel(metric="logit_diff")).max()) for run in RUNS)
    if any(parts[run].capped for run in RUNS):
        both = [f"{run} {sums[run].mean():+.3f}, not {float(baselines[run].mean()):+.3f}" for run in RUNS]
        return [f"Logits are soft-capped; contributions add up to what they are before that: {'; '.join(both)}."]
    if apart > _ROUNDING:
        return [f"Contributions add up to the logit difference within {apart:.2g}: the model's type rounds."]
    return []


# -- results


def _said(tokenized: Sequence[TokenizedPair]) -> dict[str, None]:
    return dict.fromkeys(warning for one in tokenized for warning in one.warnings)


def _part_labels(model: Model, by: str) -> dict[str, Any]:
    layers = range(model.shape.n_layers)
    if by == "head":
        return {"layer": np.arange(len(layers)), "head": np.arange(model.shape.n_heads)}
    return {"component": ["embed", *(f"{layer}_{name}_out" for layer in layers for name in ("attn", "mlp")), "bias"]}


def _dataset(
    variables: Mapping[str, tuple[NDArray[np.float64], str, str]], labels: Mapping[str, Any], absent: Any = False
) -> xr.Dataset:
    """Returns labelled arrays from (values, unit, label), all measured but what is absent."""
    dims, shape = tuple(labels), [len(values) for values in labels.values()]
    data = {name: (dims, values, {"unit": unit, "label": label}) for name, (values, unit, label) in variables.items()}
    state = np.where(np.broadcast_to(absent, shape), STATES.index("no position"), 0).astype(np.int8)
    return xr.Dataset(data, coords={**labels, "state": (dims, state)})


def _baselines(metrics: Sequence[Metric], logits: Mapping[str, Tensor], answers: Answers) -> xr.Dataset:
    values = {run: np.stack([measure(one, logits[run], answers).numpy() for one in metrics]) for run in RUNS}
    labels = {"metric": [one.name for one in metrics], "pair": np.arange(len(answers.answer))}
    return xr.Dataset({run: (("metric", "pair"), values[run]) for run in RUNS}, coords=labels)


def _provenance(
    method: str, model: Model, tokenized: Sequence[TokenizedPair], metrics: Sequence[Metric], over: Sequence[str]
) -> dict[str, Any]:
    return {
        "method": method,
        "model": describe_model(model),
        "pairs": [describe_tokens(one) for one in tokenized],
        "versions": describe_versions(),
        "metrics": [one.describe() for one in metrics],
        "over": list(over),
    }
