"""The graph of edges that a model has, where what its parts write adds up."""

from nbpatch.engine.additive import Additive, scales_of
from nbpatch.engine.fit import Fit
from nbpatch.errors import SiteError
from nbpatch.graph import Graph
from nbpatch.model import Model
from nbpatch.parts import Parts


def graph_of(model: Model, fit: Fit) -> tuple[Parts, Graph, Additive]:
    """Returns a model's parts, its graph of edges, and how senders write into the stream.

    Args:
        fit: how the model can be run.

    Raises:
        SiteError: there is no such graph, with the reason.
    """
    works = [fit.works.get(name, "") for name in ("z", "q", "k", "v", "mlp_out", "resid_pre")]
    reason = fit.reason or next((why for why in works if why), "")
    if model.engine != "auto":
        reason = reason or f"model.engine is {model.engine!r}"
    if fit.parts is None or reason:
        raise _no_graph(model, reason)
    scales: dict[str, list[float]] = {}
    for senders in ("z", "mlp_out"):
        scales[senders], why = scales_of(model, fit.parts, senders)
        if why:
            raise _no_graph(model, why)
    shape = model.shape
    parallel = tuple(block.mid is None for block in fit.parts.blocks)
    graph = Graph(shape.n_layers, shape.n_heads, shape.n_kv_heads, parallel)
    return fit.parts, graph, Additive(scales["z"], scales["mlp_out"])


def _no_graph(model: Model, why: str) -> SiteError:
    return SiteError(
        f"{model.name} has no graph of edges: what its parts write does not add up in the residual stream.",
        where="model",
        seen=why,
        fix='nbp.attribute(model, pairs, "z") estimates its heads, nbp.patch runs them',
    )
