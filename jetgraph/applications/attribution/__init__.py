"""What matters on a prompt, with exact bookkeeping: sums over classes of paths, attribution graphs, rankings."""

from jetgraph.applications.attribution.attributing import attribute
from jetgraph.applications.attribution.faithful import faithfulness
from jetgraph.applications.attribution.rankings import rank
from jetgraph.applications.attribution.spectra import spectrum

__all__ = ["attribute", "faithfulness", "rank", "spectrum"]
