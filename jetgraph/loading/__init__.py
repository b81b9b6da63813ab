"""Names of models → loaded models, tokenizers and example inputs, for every function and the command line."""

from jetgraph.errors import LoadError as LoadError
from jetgraph.loading.loaded import Loaded as Loaded
from jetgraph.loading.naming import BUNDLED as BUNDLED
from jetgraph.loading.naming import load as load
from jetgraph.loading.naming import load_model as load_model
from jetgraph.loading.naming import load_to_look as load_to_look
from jetgraph.loading.quiet import CheckpointWarning as CheckpointWarning
from jetgraph.loading.quiet import first_sentence as first_sentence
from jetgraph.loading.quiet import quiet as quiet
from jetgraph.loading.request import loading_with as loading_with
