"""N-grams that a model's weights hold: listed, weighed by words, and compared with a corpus."""

from jetgraph.applications.ngrams.agreement import Agreement, ngram_agreement
from jetgraph.applications.ngrams.listing import NGrams, ngrams
from jetgraph.applications.ngrams.mass import NGramMass, ngram_mass
from jetgraph.applications.ngrams.table import PathTable

__all__ = ["Agreement", "NGramMass", "NGrams", "PathTable", "ngram_agreement", "ngram_mass", "ngrams"]
