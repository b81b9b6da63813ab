"""What is shown of a lens first, and what is said of it in words."""

from __future__ import annotations

from collections.abc import Mapping

from jetgraph.applications.lenses.held import LensValues
from jetgraph.applications.results import Cell, Shown
from jetgraph.errors import amount


def first_rows(lens: LensValues) -> Shown:
    """The last position of each input; of a point whose order was chosen, that order. The end of the stream, where
    there is no room for all of it.
    """
    # Reasons take the width that what is told of a token takes.
    followed = ("target_rank", "target_probability", "target_logit")
    more = ("cosine", "agrees", "remainder", "radius", "chosen") if lens.target is None else ("remainder", *followed)
    # The largest of features, and their softmax, say nothing.
    top = () if lens.features and lens.target is None else ("top", "top id", "probability", "kl")
    told = ("point", "after", "order", *top, *(name for name in more if top or name != "agrees"))
    number = lens.output.shape[0]
    last = [lens.position(row, lens.last(row)) for row in range(number)]

    def keep(row: Mapping[str, Cell]) -> bool:
        here = row["position"] is None or row["position"] == last[int(row["example"] or 0)]
        return here and row.get("chosen", "") is not None

    return Shown(("example", *told) if number > 1 else told, keep, end=True)


def remarks(lens: LensValues, *, carried: bool = False, ahead: bool = True) -> str:
    """Where rows are from, where a lens leaves more than the output, and what orders above 0 read: with `carried`, the
    lens takes the rest of the stream along; with `ahead`, it reads its end on this prompt.
    """
    said: list[str] = []
    if lens.features:
        said.append(
            "the output has features, as of an encoder, which are no tokens: cosine and remainder tell how near a "
            "point is to the output; attribute, spectrum and ablate tell what makes its direction"
        )
    elif lens.output.dim() == 3 and lens.output.shape[0] == 1:
        says = lens.said(int(lens.output[0, lens.last()].argmax()))
        if lens.places is None:
            said.append(f"at the last position, where the model says {says}; files hold every position")
        else:
            said.append(f"at position {lens.position(0, 0)}, where the model says {says}")
    if lens.target is not None:
        said.append(f"the target is {lens.said(lens.target)}")
    rest = lens.comparison.remainder[:, -1]
    rest = (rest if lens.counted is None else rest[..., lens.counted.to(rest.device)]).flatten(1).median(1).values
    if large := int((rest > 1).sum()):
        said.append(
            f"at {large} of {amount(len(lens.points), 'point')} the remainder is larger than the output, so that the "
            "lens does not tell what the model says: "
            + ("" if carried else "transport_lens takes the rest of the stream along, ")
            + "attribute tells what reaches the output"
        )
    if lens.radius is not None and (far := int((lens.radius[:, 0, -1] < 1).sum())):
        said.append(
            f"at {far} of {amount(len(lens.points), 'point')} the end of the stream lies beyond the radius of "
            "convergence, where higher orders lead away from the output"
        )
    if lens.order and ahead:
        said.append(
            "from order 1 on a lens reads the end of the stream too: that it agrees with the model is no news of what "
            "the point holds, which is order 0"
        )
    return "; ".join(said)
