"""Where a patch can go: components, their axes, the site grammar, and the shape of a model.

`z[3.1] @ END` reads: component z, layer 3, head 1, at the last token. `resid_pre[2] @ 7` has no head;
`pattern[3.1] @ END <- 4` has a destination and a source; `*` or an absent part means "all of them".
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from nbpatch.errors import SiteError, suggest


@dataclass(frozen=True)
class Component:
    """One kind of activation.

    Attributes:
        name: the spelling used everywhere.
        axes: the axes a sweep may use, in the order results have them.
        label: what it is called in a sentence, plural.
        hook: the name of its hook point inside a TransformerLens block, or "" when it has none there.
        like: the component whose patch has the same effect, "" for none: then it has an engine of its own.
    """

    name: str
    axes: tuple[str, ...]
    label: str
    hook: str
    like: str = ""

    def hook_at(self, layer: int) -> str:
        """Returns the name of its hook point in a TransformerBridge; of embeddings there is one."""
        return f"blocks.{layer}.{self.hook}" if "layer" in self.axes else self.hook

    @property
    def has_heads(self) -> bool:
        """Whether the component is split by attention head."""
        return "head" in self.axes

    @property
    def unit(self) -> str:
        """What the component is split into inside a layer: "head", "neuron", or "" for nothing."""
        return next((axis for axis in ("head", "neuron") if axis in self.axes), "")


_POS = ("layer", "pos")
_HEAD = ("layer", "head", "pos")
_EDGE = ("layer", "head", "dest", "src")

COMPONENTS: dict[str, Component] = {
    component.name: component
    for component in (
        Component("embed", ("pos",), "token embeddings", "hook_embed", "resid_pre"),
        Component("resid_pre", _POS, "positions of the residual stream", "hook_resid_pre"),
        Component("resid_mid", _POS, "positions of the residual stream after attention", "hook_resid_mid"),
        Component("resid_post", _POS, "positions of the residual stream after the MLP", "hook_resid_post"),
        Component("attn_out", _POS, "attention outputs", "hook_attn_out"),
        Component("mlp_out", _POS, "MLP outputs", "hook_mlp_out"),
        Component("z", _HEAD, "attention heads", "attn.hook_z"),
        Component("q", _HEAD, "heads’ queries", "attn.hook_q"),
        Component("k", _HEAD, "heads’ keys", "attn.hook_k"),
        Component("v", _HEAD, "heads’ values", "attn.hook_v"),
        Component("pattern", _EDGE, "attention patterns", "attn.hook_pattern"),
        Component("scores", _EDGE, "attention scores", "attn.hook_attn_scores", "scores"),
        Component("mlp_post", ("layer", "neuron", "pos"), "neurons", "mlp.hook_post"),
        Component("head_out", _HEAD, "attention heads", "attn.hook_z", "z"),
    )
}

SWEEPABLE: tuple[str, ...] = tuple(name for name, component in COMPONENTS.items() if not component.like)
"""The components whose patches differ from each other; `embed` and `head_out` act like one of them, `scores` are
patched by replay only."""


@dataclass(frozen=True)
class ModelShape:
    """The sizes a plan needs; no weights.

    Attributes:
        n_kv_heads: key-value heads; smaller than `n_heads` under grouped-query attention.
        n_ctx: longest prompt in tokens.
        causal: whether a position sees only itself and earlier ones.
        layer_weights: weights of the matrices a token meets in one block, for estimates of cost; 0 when not known.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int
    causal: bool = True
    layer_weights: int = 0

    @property
    def attention_weights(self) -> tuple[int, int]:
        """Weights of one block's attention: queries, keys and values; output projection."""
        written = self.d_model * self.n_heads * self.d_head
        return written + 2 * self.d_model * self.n_kv_heads * self.d_head, written

    @property
    def grouped(self) -> bool:
        """Whether several query heads share one key-value head."""
        return self.n_kv_heads != self.n_heads

    def heads_of(self, component: str) -> int:
        """Returns how many heads, or neurons, the component is split into."""
        if component == "mlp_post":
            return self.d_mlp
        return self.n_kv_heads if component in ("k", "v") else self.n_heads

    def head_labels(self, component: str) -> tuple[int, ...] | tuple[str, ...]:
        """Returns the labels of the head axis: 0, 1, … or kv0, kv1, … where heads share keys and values."""
        if component in ("k", "v") and self.grouped:
            return tuple(f"kv{head}" for head in range(self.n_kv_heads))
        return tuple(range(self.heads_of(component)))


def component_of(name: str) -> Component:
    """Returns the component called `name`.

    Raises:
        SiteError: there is none.
    """
    if name not in COMPONENTS:
        raise SiteError(f"no component {name!r}.", where="component", fix=suggest(name, COMPONENTS))
    return COMPONENTS[name]


def acting(component: str) -> str:
    """Returns the component whose patch has the same effect: mostly itself."""
    return COMPONENTS[component].like or component


def default_over(component: str) -> tuple[str, ...]:
    """Returns the axes a sweep of `component` uses when none are named: layer and head, else layer and pos."""
    known = component_of(component)
    return ("layer", "head") if known.has_heads else tuple(axis for axis in known.axes if axis in ("layer", "pos"))


def parse_over(component: str, over: str | Sequence[str] | None) -> tuple[str, ...]:
    """Returns the swept axes in the order of the component's own; "label" stands where "pos" would.

    Args:
        over: axis names, separated by spaces or commas, in any order; None for the usual ones.

    Raises:
        SiteError: an axis that the component does not have, or one named twice.
    """
    known = component_of(component)
    if over is None:
        return default_over(component)
    names = re.split(r"[\s,]+", over.strip()) if isinstance(over, str) else [str(name) for name in over]
    usual = f'over="{" ".join(default_over(component))}"'
    if not any(names):
        raise SiteError("over names no axis.", where="over", seen=repr(over), fix=usual)
    axes = known.axes
    if "label" in names and "pos" in axes and "pos" not in names:
        axes = tuple("label" if axis == "pos" else axis for axis in axes)
    for name in names:
        if name not in axes:
            raise SiteError(
                f"{component} has no axis {name!r}.",
                where=f"over={over!r}",
                seen=f"axes of {component}: {' '.join(known.axes)}",
                fix=_axis_hint(component, name, known.axes),
            )
    if len(set(names)) < len(names):
        raise SiteError("an axis is named twice.", where="over", seen=repr(over), fix=usual)
    return tuple(axis for axis in axes if axis in names)


def parse_sweep(sweep: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Reads "z q over layer head" as components and their axes; without axes, the usual ones, which must be the same.

    Raises:
        SiteError: no component, an unknown one, or an axis that it does not have.
    """
    words, named, over = (part.strip() for part in sweep.partition(" over "))
    names = tuple(words.replace(",", " ").split())
    axes = [parse_over(name, over if named else None) for name in names]
    if not names or len(set(axes)) > 1:
        seen = "; ".join(f"{name}: {' '.join(one)}" for name, one in zip(names, axes, strict=True))
        what = "components of one sweep need the same axes." if names else "no component named."
        raise SiteError(what, where=f"sites={sweep!r}", seen=seen, fix='"z mlp_out over layer pos"')
    return names, axes[0]


def _axis_hint(component: str, name: str, axes: tuple[str, ...]) -> str:
    if component == "pattern" and name == "pos":
        return '"dest" (the position that looks) or "src" (the position looked at)'
    return suggest(name, axes)


@dataclass(frozen=True)
class Site:
    """One place in a model. None means all of that axis; `pos` may be "END", the last token, or a pair's label.

    Attributes:
        head: the head; of `mlp_post` the neuron.
    """

    component: str
    layer: int | None = None
    head: int | None = None
    pos: int | str | None = None
    src: int | None = None

    def __str__(self) -> str:
        layer = "*" if self.layer is None else str(self.layer)
        inside = layer
        if COMPONENTS[self.component].unit:
            inside += ".*" if self.head is None else f".{self.head}"
        text = f"{self.component}[{inside}]"
        if self.pos is not None:
            text += f" @ {self.pos}"
        return text if self.src is None else f"{text} <- {self.src}"


_SITE = re.compile(
    r"""\s*(?P<component>\w+)\s*
    (?:\[\s*(?P<layer>\d+|\*)\s*(?:\.\s*(?P<head>\d+|\*)\s*)?\])?\s*
    (?:@\s*(?P<pos>\d+|\*|[^\W\d][\w .'+-]*?)\s*)?
    (?:<-\s*(?P<src>\d+|\*)\s*)?$""",
    re.VERBOSE,
)


def parse_site(text: str) -> Site:
    """Reads a site as `str(site)` writes it.

    >>> str(parse_site("z[3.1] @ END"))
    'z[3.1] @ END'

    Raises:
        SiteError: not of the form, or an axis that the component does not have.
    """
    match = _SITE.match(text)
    if match is None:
        raise SiteError(
            "not a site.", where=f"site {text!r}", fix='"z[3.1] @ END", "resid_pre[2] @ 7" or "pattern[3.1]"'
        )
    parts = match.groupdict()
    component = parts["component"]
    if component not in COMPONENTS:
        raise SiteError(f"no component {component!r}.", where=f"site {text!r}", fix=suggest(component, COMPONENTS))
    known = COMPONENTS[component]
    if parts["head"] is not None and not known.unit:
        raise SiteError(f"{component} has no heads.", where=f"site {text!r}", fix=f'"{component}[{parts["layer"]}]"')
    if parts["src"] is not None and "src" not in known.axes:
        raise SiteError(
            f"{component} has no source axis.", where=f"site {text!r}", fix=f'"pattern{text[len(component) :]}"'
        )
    pos = parts["pos"]
    place = _index(pos) if pos is None or pos == "*" or pos.isdecimal() else pos
    return Site(component, _index(parts["layer"]), _index(parts["head"]), place, _index(parts["src"]))


def check_site(site: Site, shape: ModelShape) -> Site:
    """Returns `site` when the model has it.

    Raises:
        SiteError: a layer or head outside the model.
    """
    heads = shape.heads_of(site.component)
    unit = COMPONENTS[site.component].unit or "head"
    model = f"{shape.n_layers} layers, {heads} {unit}s (0–{heads - 1})"
    if site.layer is not None and site.layer >= shape.n_layers:
        fix = f"layers 0–{shape.n_layers - 1}"
        raise SiteError(f"no layer {site.layer}.", where=f'"{site}"', notes={"model": model}, fix=fix)
    if site.head is not None and site.head >= heads:
        fix = f'"{Site(site.component, site.layer, None, site.pos)}" for all {unit}s of layer {site.layer}'
        raise SiteError(
            f"no {unit} {site.head} in layer {site.layer}.", where=f'"{site}"', notes={"model": model}, fix=fix
        )
    return site


def _index(text: str | None) -> int | None:
    return None if text is None or text == "*" else int(text)
